# docker build -t fedmedgen:0.1.0 .      (with --build-arg TORCH=https://download.pytorch.org/whl/cpu for no GPU)
FROM python:3.11-slim
ARG TORCH=https://pypi.org/simple
WORKDIR /opt/fedmedgen
COPY . .
RUN pip install --no-cache-dir --index-url "$TORCH" "torch>=2.9,<2.14" \
    && pip install --no-cache-dir --editable .
ENV HOME=/tmp
CMD ["fedmedgen", "--help"]

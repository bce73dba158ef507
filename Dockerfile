# docker build -t fedmedgen:0.1.0 .      (--build-arg TORCH="--index-url …" takes torch from another index: its CPU builds, for no GPU)
FROM python:3.11-slim
ARG TORCH=""
WORKDIR /opt/fedmedgen
COPY . .
RUN pip install --no-cache-dir $TORCH "torch>=2.9,<2.14" \
    && pip install --no-cache-dir --editable .
ENV HOME=/tmp
CMD ["fedmedgen", "--help"]

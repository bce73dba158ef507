"""Which device is taken, and how a GPU reckons."""

from collections.abc import Iterator

import pytest
import torch

from fedmedgen import devices
from fedmedgen.settings import RuntimeSettings, Settings


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch says that there is one; what is set for it is set back."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    rounding = (torch.backends.cudnn, torch.backends.cuda.matmul)
    shorter = [module.allow_tf32 for module in rounding]
    for module in rounding:
        module.allow_tf32 = True
    kernels = ("flash", "mem_efficient", "cudnn")
    before = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in kernels}
    yield
    torch.use_deterministic_algorithms(False)
    for module, allowed in zip(rounding, shorter, strict=True):
        module.allow_tf32 = allowed
    for name, enabled in before.items():
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)


def asked(device: str) -> Settings:
    return Settings(runtime=RuntimeSettings(device=device))  # type: ignore[arg-type]


def reckons_exactly() -> list[bool]:
    cuda = torch.backends.cuda
    return [
        torch.are_deterministic_algorithms_enabled(),
        not torch.backends.cudnn.allow_tf32,
        not cuda.matmul.allow_tf32,
        not (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()),
    ]


@pytest.mark.usefixtures("gpu")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.device_of(asked("auto")).type == "cpu"
    assert devices.device_of(asked("cuda")).type == "cuda"
    assert devices.drawing_device(asked("cuda")).type == "cpu"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_takes_single_precision_and_kernels_that_repeat_themselves(wanted: str) -> None:
    assert not any(reckons_exactly())
    assert devices.drawing_device(asked(wanted)).type == "cuda"
    assert all(reckons_exactly())


@pytest.mark.usefixtures("gpu")
def test_a_cpu_is_left_as_it_is() -> None:
    assert devices.device_of(asked("cpu")).type == "cpu"
    assert not any(reckons_exactly())

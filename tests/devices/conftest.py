"""The device of a run of `on_device.py`: a stand-in, or what `--device` says."""

from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="standin", help="of on_device.py: standin, or a device that torch has here")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> Iterator[torch.device]:
    if (name := pytestconfig.getoption("--device")) != "standin":
        yield torch.empty(0, device=name).device  # with its number
        return
    from tests.devices import stand_in

    with stand_in.device() as made:
        yield made


@pytest.fixture(autouse=True)
def operators(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test computes it computes on the stand-in, and by nothing that CUDA has no kernel of."""
    if request.config.getoption("--device") != "standin" or "device" not in request.fixturenames:
        yield
        return
    from tests.devices import stand_in

    stand_in.used.clear()
    yield
    assert stand_in.computed()
    assert not stand_in.without_cuda(stand_in.used)

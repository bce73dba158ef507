"""The device of a run of `on_device.py`: a stand-in, or what `--device` says."""

from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="standin", help="of on_device.py: standin, or a device that torch has here")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> Iterator[torch.device]:
    if (name := pytestconfig.getoption("--device")) != "standin":
        yield torch.device(name)
        return
    from tests.devices import stand_in

    with stand_in.device() as made:
        yield made


@pytest.fixture(autouse=True)
def operators(pytestconfig: pytest.Config) -> Iterator[None]:
    """A test that the stand-in passes must have asked for nothing that CUDA has no kernel of."""
    yield
    if pytestconfig.getoption("--device") == "standin":
        from tests.devices import stand_in

        assert not stand_in.without_cuda(stand_in.used)

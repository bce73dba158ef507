"""What travels: the wheel holds the library alone, Flower's bundle the library and the two apps."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def rooms(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as file:
        return {name.split("/")[0] for name in file.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    environment = {**os.environ, "FLWR_HOME": str(folder / "home"), "FLWR_TELEMETRY_ENABLED": "0"}
    environment["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    flwr = Path(sys.executable).with_name("flwr")
    done = subprocess.run(
        [flwr, "build", "--app", ROOT], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.fab"))


def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    assert {room for room in rooms(wheel) if not room.endswith(".dist-info")} == {"fedmedgen"}


def test_the_wheel_holds_the_studies_settings_and_the_type_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert {"fedmedgen/conf/config.yaml", "fedmedgen/conf/study/demo.yaml", "fedmedgen/py.typed"} <= names


def test_the_bundle_holds_the_library_and_both_apps(bundle: Path) -> None:
    assert {"fedmedgen", "server", "sites"} <= rooms(bundle)
    assert not {"simulations", "tests", "docs"} & rooms(bundle)


def test_the_bundle_holds_every_module_and_every_study(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        inside = set(file.namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for room in ("fedmedgen", "server", "sites")
        for pattern in ("*.py", "*.yaml")
        for path in (ROOT / room).rglob(pattern)
    }
    assert wanted <= inside


def test_the_projects_people_are_told_to_install_the_clone_before_anything_that_a_wheel_lacks() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert "pip install .`" not in page
    assert page.index("pip install -e .") < page.index("fedmedgen simulate") < page.index("fedmedgen provision")

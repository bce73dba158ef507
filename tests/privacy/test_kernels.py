"""Kernels measured once for each shape: exact whichever is taken, kept in a file, and nothing else depends on them."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from fedmedgen.privacy import contractions, kernels
from fedmedgen.privacy.contractions import KERNELS, ONE_BY_ONE, UNFOLDED, Window
from fedmedgen.privacy.fused_engine import FusedEngine
from fedmedgen.privacy.kernels import Measured
from fedmedgen.privacy.per_patient import ReferenceEngine, Rows

HOW: Window = ((1, 1), (1, 1), (1, 1))
ROOT = Path(__file__).resolve().parents[2]
Kernel = Callable[..., Tensor]
Convolved = tuple[Tensor, Tensor, Tensor, int, Window]


@pytest.fixture(autouse=True)
def by_the_rule_afterwards() -> Iterator[None]:
    yield
    kernels.keep_in("")
    kernels.measured_in.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SECONDS", 1e-3)


def convolved(inputs: int = 9, patients: int = 2, size: int = 6, dtype: torch.dtype = torch.float32) -> Convolved:
    x, dy = torch.randn(patients * 3, inputs, size, size), torch.randn(patients * 3, 4, size, size)
    x, dy = (one.to(dtype).contiguous(memory_format=torch.channels_last) for one in (x, dy))
    return x, dy, torch.randn(4, inputs, 3, 3, dtype=dtype), patients, HOW


def measured(kernels_of: Measured, *shapes: Convolved) -> list[str]:
    with kernels_of.measuring():
        return [kernels_of(*shape) for shape in shapes]


def slow(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = KERNELS[kernel]

    def slowly(*arguments: Any) -> Tensor:
        time.sleep(0.01)
        return plain(*arguments)

    monkeypatch.setitem(KERNELS, kernel, slowly)


def denoiser() -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(8, 1, 1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                           down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2)  # fmt: skip


def restored(model: torch.nn.Module, rows: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(rows["x"], torch.full((len(rows["x"]),), 3.0), return_dict=False)[0]
    return (found - rows["x"]).square().mean(dim=(1, 2, 3))


def people(rows: int = 2) -> list[Rows]:
    return [{"x": torch.randn(rows, 1, 8, 8)} for _ in range(5)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_engine_is_exact_by_either_kernel(kernel: str, rows: int) -> None:
    model, patients = denoiser(), people(rows)
    wanted = ReferenceEngine(model, restored).clipped_sum(patients, 0.1)
    found = FusedEngine(model, restored, choose=lambda *_: kernel).clipped_sum(patients, 0.1)
    apart = torch.stack([(a - b).norm() for a, b in zip(found, wanted, strict=True)]).norm()
    assert float(apart / torch.stack([part.norm() for part in wanted]).norm()) < 1e-6


@pytest.mark.parametrize("slower", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_faster_kernel_is_taken_and_its_name_kept(
    slower: str, dtype: torch.dtype, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(slower, monkeypatch)
    (faster,) = set(KERNELS) - {slower}
    file = tmp_path / "somewhere" / "kernels.json"
    assert measured(Measured(file), convolved(dtype=dtype)) == [faster]
    ((key, kept),) = json.loads(file.read_text()).items()
    assert (kept, torch.__version__ in key, str(dtype) in key) == (faster, True, True)
    assert sorted(path.name for path in file.parent.iterdir()) == ["kernels.json", "kernels.json.lock"]


def test_a_shape_is_measured_once_whoever_asks(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kernels.json"
    first = measured(Measured(file), convolved())
    monkeypatch.setattr(kernels, "_seconds", lambda _: pytest.fail("measured again"))
    assert measured(Measured(file), convolved()) == first


@pytest.mark.parametrize(
    "other", [convolved(inputs=10), convolved(patients=3), convolved(size=5), convolved(dtype=torch.float64)]
)
def test_another_shape_type_or_number_of_patients_is_measured_for_itself(
    other: Convolved, tmp_path: Path, quick: None
) -> None:
    measured(Measured(tmp_path / "kernels.json"), convolved(), other)
    assert len(json.loads((tmp_path / "kernels.json").read_text())) == 2


MANY = """
import sys
from pathlib import Path
from tests.privacy.test_kernels import Measured, convolved, kernels, measured
kernels.SECONDS = 1e-4
for size in range(5, 15):
    measured(Measured(Path(sys.argv[1])), convolved(inputs=9 + int(sys.argv[2]), size=size), convolved(size=size))
"""


def test_what_other_processes_measure_meanwhile_stays(tmp_path: Path) -> None:
    words = [sys.executable, "-c", MANY, str(tmp_path / "kernels.json")]
    running = [subprocess.Popen([*words, str(number)], cwd=ROOT) for number in (1, 2, 3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(json.loads((tmp_path / "kernels.json").read_text())) == 10 * 4


def test_of_two_processes_that_measure_a_shape_the_first_decides(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Measured(tmp_path / "kernels.json") for _ in range(2))
    with monkeypatch.context() as patched:
        slow(UNFOLDED, patched)
        measured(one, convolved())
    slow(ONE_BY_ONE, monkeypatch)
    measured(other, convolved())
    assert one(*convolved()) == other(*convolved()) == ONE_BY_ONE
    assert one.mark == other.mark


def test_outside_of_measuring_nothing_is_timed_read_or_changed(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a patient whose shape is new decides nothing for others, and takes no longer the first time."""
    file = tmp_path / "kernels.json"
    choose = Measured(file)
    (first,) = measured(choose, convolved())
    file.write_text(json.dumps({key: {UNFOLDED: ONE_BY_ONE}.get(kernel, UNFOLDED)
                                for key, kernel in json.loads(file.read_text()).items()}))  # fmt: skip
    monkeypatch.setattr(kernels, "_seconds", lambda _: pytest.fail("measured"))
    assert choose(*convolved(inputs=10)) == contractions.by_rule(*convolved(inputs=10))
    assert choose(*convolved()) == first


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 3}', '{"a": []}', '{"a": "fastest of all"}'])
def test_a_file_that_says_nothing_is_measured_anew(text: str, tmp_path: Path, quick: None) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(text)
    assert set(measured(Measured(file), convolved())) <= set(KERNELS)
    assert set(json.loads(file.read_text()).values()) <= set(KERNELS)


def test_where_nothing_can_be_written_it_lasts_as_long_as_the_process(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    choose = Measured(tmp_path / "a file" / "kernels.json")
    (first,) = measured(choose, convolved())
    assert "can't be kept" in caplog.text
    monkeypatch.setattr(kernels, "_seconds", lambda _: pytest.fail("measured again"))
    assert choose(*convolved()) == first
    assert choose.mark != Measured().mark


def test_measuring_reads_no_patients_numbers_and_moves_no_random_stream(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def watched(plain: Kernel, *arguments: Any) -> Tensor:
        seen.extend(arguments[:3])
        return plain(*arguments)

    for name, plain in list(KERNELS.items()):
        monkeypatch.setitem(KERNELS, name, partial(watched, plain))
    own = convolved()
    for one in own[:3]:
        one.fill_(math.nan)
    before = torch.get_rng_state()
    measured(Measured(tmp_path / "kernels.json"), own)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(seen) >= 6
    assert all(torch.isfinite(one).all() for one in seen)


def test_what_is_too_large_to_unfold_is_not_unfolded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGEST_UNFOLDED", 6 * 36 * 81 * 4 - 1)
    monkeypatch.setattr(kernels, "_seconds", lambda _: pytest.fail("unfolded"))
    assert measured(Measured(tmp_path / "kernels.json"), convolved()) == [ONE_BY_ONE]


def test_engines_made_after_a_file_is_named_take_its_kernels_and_others_follow_the_rule(
    tmp_path: Path, quick: None
) -> None:
    file = tmp_path / "kernels.json"
    assert kernels.current() is contractions.by_rule
    assert kernels.mark() == ""
    kernels.keep_in(str(file))
    named = kernels.mark()
    with kernels.measuring():
        FusedEngine(denoiser(), restored, max_rows=8).clipped_sum(people(rows=4), 1.0)
    assert json.loads(file.read_text())
    assert len({"", named, kernels.mark()}) == 3
    kernels.keep_in("")
    assert kernels.current() is contractions.by_rule
    assert kernels.mark() == ""


def test_the_rehearsal_of_an_engine_measures_nothing(tmp_path: Path, quick: None) -> None:
    """Its batches of two and three rows are none that a patient is in."""
    choose = Measured(tmp_path / "kernels.json")
    with choose.measuring():
        FusedEngine(denoiser(), restored, max_rows=8, choose=choose).clipped_sum(people(rows=4), 1.0)
    keys = json.loads((tmp_path / "kernels.json").read_text())
    assert keys
    assert all("torch.float32 2 (8," in key for key in keys)  # two patients of four rows

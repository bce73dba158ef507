"""The self-check passes right engines and stops wrong ones, naming the layers."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from fedmedgen.errors import SelfCheckError
from fedmedgen.privacy import opacus_engine, per_patient, selfcheck
from fedmedgen.privacy.per_patient import ENGINES, LossPerRow, ReferenceEngine, Rows
from fedmedgen.privacy.selfcheck import check_engine

Patients = Callable[[int], list[dict[str, Tensor]]]


@contextlib.contextmanager
def no_mending(model: nn.Module) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("engine", "precision", "largest"),
    [(engine, "fp32", 5e-5) for engine in ENGINES]
    + [
        ("reference", "bf16", 0.02),
        ("opacus", "bf16", 0.02),
    ],  # .011 to .015 by processor; fused: test_privacy_commands.py
)
def test_all_engines_pass_on_a_diffusers_network_with_norms_above_and_below_the_clip(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, engine: str, precision: str, largest: float
) -> None:
    result = check_engine(engine, denoiser, loss, patients_of, precision=precision)
    assert 0 < result.largest_error < largest < result.tolerance
    assert result.precision == precision
    assert result.rows > result.patients == 5
    high, middle, low = result.clip_norms
    assert high > max(result.norms)
    assert min(result.norms) < middle < max(result.norms)
    assert low < min(result.norms)


def test_opacus_as_shipped_is_wrong_on_this_network_and_the_check_names_the_convolutions(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opacus_engine, "mended_convolutions", no_mending)
    with pytest.raises(SelfCheckError, match=r"mid_block\.resnets\.1\.conv1\.weight") as refusal:
        check_engine("opacus", denoiser, loss, patients_of)
    assert "attention" not in str(refusal.value)
    assert "privacy.engine=reference" in str(refusal.value)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_opacus_as_shipped_is_wrong_on_a_plain_diffusers_unet_and_the_check_names_the_layer(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    def rows(count: int) -> list[Rows]:
        generator = torch.Generator().manual_seed(0)
        return [{"x": (1 + n) * torch.randn(1 + n % 3, 1, 16, 16, generator=generator)} for n in range(count)]

    def loss(model: nn.Module, rows: Rows) -> Tensor:
        out: Tensor = model(rows["x"], torch.full((len(rows["x"]),), 3.0), return_dict=False)[0]
        return (out - rows["x"]).square().mean(dim=(1, 2, 3))

    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(16, 1, 1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks)
    check_engine("opacus", unet, loss, rows, precision=precision)
    monkeypatch.setattr(opacus_engine, "mended_convolutions", no_mending)
    with pytest.raises(SelfCheckError, match=r"mid_block\.resnets\.1\.conv1\.weight \(\d"):
        check_engine("opacus", unet, loss, rows, precision=precision)


def test_a_check_leaves_the_model_as_it_was_and_does_not_trust_its_zero_weights(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parameter in denoiser.parameters():
        parameter.data.zero_()
    before = copy.deepcopy(denoiser.state_dict())
    check_engine("opacus", denoiser, loss, patients_of)
    assert all(torch.equal(before[key], value) for key, value in denoiser.state_dict().items())
    monkeypatch.setattr(opacus_engine, "mended_convolutions", no_mending)
    with pytest.raises(SelfCheckError):
        check_engine("opacus", denoiser, loss, patients_of)


class Planted(ReferenceEngine):
    """A reference engine with one fault, by name."""

    fault = ""

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        if self.fault == "no clip":
            return super().clipped_sum(patients, 1e9)
        if self.fault == "clip by row":
            rows = [{k: v[i : i + 1] for k, v in p.items()} for p in patients for i in range(len(p["sigma"]))]
            return super().clipped_sum(rows, clip_norm)
        if self.fault == "drops a patient":
            return super().clipped_sum(patients[:-1] or patients, clip_norm)
        total = super().clipped_sum(patients, clip_norm)
        if self.fault == "moves the others":
            return [part * (1 + 1e-7 * len(patients)) for part in total]
        if self.fault == "adds in another order each time":
            self.calls = getattr(self, "calls", 0) + 1
            return [part * (1 + 1e-7 * self.calls) for part in total]
        if self.fault == "mean":
            return [part / max(1, len(patients)) for part in total]
        if self.fault == "forgets a layer":
            total[0] = torch.zeros_like(total[0])
        if self.fault == "lets nan through" and any(bool(torch.isnan(p["x"]).any()) for p in patients):
            total[0] += float("nan")
        if self.fault == "counts nan" and any(bool(torch.isnan(p["x"]).any()) for p in patients):
            total[0] += clip_norm / total[0].numel()
        if self.fault == "gives nobody a sum" and not patients:
            total[0] += clip_norm
        return total


FAULTS = {
    "no clip": "disagrees",
    "clip by row": "disagrees",
    "drops a patient": "disagrees",
    "mean": "disagrees",
    "forgets a layer": "disagrees",
    "moves the others": "when others come or go: by .*e-07 of the clip",
    "adds in another order each time": "gives the same patients another sum, .*: by .*e-0[67] of the clip",
    "lets nan through": "NaN move",
    "counts nan": "NaN move",
    "gives nobody a sum": "gives nobody a sum",
}


@pytest.mark.parametrize(("fault", "words"), FAULTS.items())
def test_each_planted_fault_is_caught(
    denoiser: nn.Module,
    loss: LossPerRow,
    patients_of: Patients,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    words: str,
) -> None:
    monkeypatch.setattr(Planted, "fault", fault)
    monkeypatch.setattr(
        selfcheck, "make_engine", lambda _, model, loss, precision: Planted(model, loss, precision=precision)
    )
    with pytest.raises(SelfCheckError, match=words):
        check_engine("planted", denoiser, loss, patients_of)


def test_the_harness_of_planted_faults_passes_without_a_fault(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        selfcheck, "make_engine", lambda _, model, loss, precision: Planted(model, loss, precision=precision)
    )
    assert check_engine("planted", denoiser, loss, patients_of).largest_error < 5e-5


def test_a_loss_that_couples_rows_of_different_patients_is_caught(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients
) -> None:
    def coupled(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        each = loss(model, rows)
        return each * (1 + each.detach().mean())

    with pytest.raises(SelfCheckError, match="disagrees"):
        check_engine("opacus", denoiser, coupled, patients_of)


def test_buffers_that_learn_from_patients_are_caught(loss: LossPerRow) -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.register_buffer("seen", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.detach().sum(dim=0)
            return self.layer(x)

    def rows(count: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [{"x": torch.randn(2, 2, generator=generator) * (1 + number)} for number in range(count)]

    with pytest.raises(SelfCheckError, match="buffers"):
        check_engine("reference", Remembers(), lambda model, rows: model(rows["x"]).squeeze(1).square(), rows)


def test_rows_without_a_gradient_prove_nothing_and_are_refused(denoiser: nn.Module, patients_of: Patients) -> None:
    def flat(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        return model(rows["x"], rows["sigma"], rows["label"]).mean(dim=(1, 2, 3)) * 0

    with pytest.raises(SelfCheckError, match="above zero"):
        check_engine("reference", denoiser, flat, patients_of)


def test_the_engines_share_one_piece_of_clipping_code() -> None:
    assert opacus_engine.add_clipped is per_patient.add_clipped


class Faint(nn.Module):
    """A layer, and beside it a scale that hardly moves what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.ones(8)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + 1e-3 * self.scale * x
        return out


class MissesTheFirst(ReferenceEngine):
    """Right but for the first parameter, whose gradient it takes for zero."""

    def clipped_sum(self, patients: Sequence[Rows], clip_norm: float) -> list[Tensor]:
        first, *rest = super().clipped_sum(patients, clip_norm)
        return [torch.zeros_like(first), *rest]


def test_a_faint_layer_that_an_engine_misses_is_found_whatever_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bf16 can't tell from rounding, the check in fp32 that goes before can."""

    def rows(count: int) -> list[Rows]:
        generator = torch.Generator().manual_seed(0)
        return [{"x": torch.randn(1 + n % 3, 8, generator=generator)} for n in range(count)]

    def loss(model: nn.Module, rows: Rows) -> Tensor:
        return (model(rows["x"]) - rows["x"]).square().mean(dim=1)

    check_engine("reference", Faint(), loss, rows, precision="bf16")
    monkeypatch.setattr(per_patient, "ReferenceEngine", MissesTheFirst)
    with pytest.raises(SelfCheckError, match=r"\(fp32\) disagrees .* scale"):
        check_engine("reference", Faint(), loss, rows, precision="bf16")

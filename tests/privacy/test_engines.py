"""Each engine's sum is the sum of every patient's clipped mean gradient, and no patient can move it further."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy.opacus_engine import OpacusEngine
from fedmedgen.privacy.per_patient import ENGINES, LossPerRow, ReferenceEngine, make_engine, trainable

Patients = Callable[[int], list[dict[str, Tensor]]]
PRECISIONS = ["fp32", "bf16"]


def square_loss(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    return (model(rows["x"]).squeeze(1) - rows["y"]).square() / 2


def linear(weights: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weights), 1, bias=False)
    layer.weight.data = torch.tensor([weights])
    return layer


def person(*rows: tuple[list[float], float]) -> dict[str, Tensor]:
    return {"x": torch.tensor([x for x, _ in rows]), "y": torch.tensor([y for _, y in rows])}


def norm(parts: list[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sum_worked_out_by_hand(engine: str) -> None:
    # residual * x: one patient's rows (1, 0) and (0, 3) average to (0.5, 1.5); the other's (30, 40) clips to (1.2, 1.6)
    patients = [person(([1.0, 0.0], -1.0), ([0.0, 3.0], -1.0)), person(([3.0, 4.0], -10.0))]
    (total,) = make_engine(engine, linear([0.0, 0.0]), square_loss).clipped_sum(patients, 2.0)
    assert torch.allclose(total, torch.tensor([[1.7, 3.1]]).double(), atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_rows_of_a_patient_count_no_more_than_one(engine: str) -> None:
    row = ([3.0, 4.0], 1.0)
    one = make_engine(engine, linear([1.0, 1.0]), square_loss).clipped_sum([person(row)], 1e6)
    many = make_engine(engine, linear([1.0, 1.0]), square_loss).clipped_sum([person(*[row] * 9)], 1e6)
    assert torch.allclose(one[0], many[0], rtol=1e-6)


@pytest.mark.parametrize("max_rows", [1, 4, 64])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e3])
def test_opacus_mended_equals_the_reference_on_a_diffusers_network_with_attention(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, clip_norm: float, max_rows: int
) -> None:
    patients = patients_of(5)
    expected = ReferenceEngine(denoiser, loss).clipped_sum(patients, clip_norm)
    found = OpacusEngine(denoiser, loss, max_rows=max_rows).clipped_sum(patients, clip_norm)
    for part, wanted in zip(found, expected, strict=True):
        assert torch.allclose(part, wanted, rtol=1e-3, atol=1e-5 * norm(expected))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clip_norm", [1e-4, 0.5, 1e4])
def test_no_patient_moves_the_sum_by_more_than_the_clip(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, engine: str, clip_norm: float
) -> None:
    patients = patients_of(4)
    run = make_engine(engine, denoiser, loss)
    whole = run.clipped_sum(patients, clip_norm)
    for left_out in range(4):
        rest = run.clipped_sum([p for index, p in enumerate(patients) if index != left_out], clip_norm)
        assert norm([a.double() - b.double() for a, b in zip(whole, rest, strict=True)]) <= clip_norm * (1 + 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_bound_holds_among_hundreds_of_patients_whose_sum_a_float32_could_not_hold(engine: str) -> None:
    # A float32 accumulator rounds this sum differently with and without a patient: by 3e-5 of the clip, not 1e-13.
    generator = torch.Generator().manual_seed(0)
    xs = 1 + 0.3 * torch.randn(800, 1, 2, generator=generator)
    patients = [{"x": x, "y": torch.full((1,), -9.0)} for x in xs]
    run = make_engine(engine, linear([0.0] * 2), square_loss)
    whole = run.clipped_sum(patients, 0.7)
    for left_out in (0, 100, 300, 400):
        rest = run.clipped_sum(patients[:left_out] + patients[left_out + 1 :], 0.7)
        assert norm([a - b for a, b in zip(whole, rest, strict=True)]) <= 0.7 * (1 + 1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_nobodys_part_is_moved_by_who_else_is_there(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, engine: str, precision: str
) -> None:
    patients = patients_of(24)  # 48 rows: in batches of that size, not filled up, one thread rounds by 4e-7 otherwise
    run = make_engine(engine, denoiser, loss, precision=precision)
    whole = run.clipped_sum(patients, 1.0)
    for left_out in (0, 11):
        rest = run.clipped_sum(patients[:left_out] + patients[left_out + 1 :], 1.0)
        alone = run.clipped_sum([patients[left_out]], 1.0)
        assert norm([a - b - c for a, b, c in zip(whole, rest, alone, strict=True)]) < 1e-12


def test_opacus_runs_batches_of_one_size_and_a_patient_with_more_rows_alone() -> None:
    sizes = []

    def watched(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        sizes.append(len(rows["x"]))
        return square_loss(model, rows)

    patients = [person(*[([1.0, 2.0], 1.0)] * rows) for rows in (3, 1, 2, 9, 1)]
    engine = OpacusEngine(linear([1.0, 1.0]), watched, max_rows=4)
    together = engine.clipped_sum(patients, 1e6)
    assert sizes == [4, 4, 9, 4]
    sizes.clear()
    apart = [engine.clipped_sum([patient], 1e6)[0] for patient in patients]
    assert sizes == [4, 4, 4, 9, 4]
    assert torch.allclose(together[0], torch.stack(apart).sum(dim=0), rtol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_rounds_the_gradients_but_neither_the_weights_nor_the_sum(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, engine: str
) -> None:
    patients, seen = patients_of(4), []
    denoiser.unet.conv_out.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))  # type: ignore[operator, union-attr]
    exact = make_engine(engine, denoiser, loss).clipped_sum(patients, 1.0)
    coarse = make_engine(engine, denoiser, loss, precision="bf16").clipped_sum(patients, 1.0)
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert {part.dtype for part in coarse} == {torch.float64}
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.float32}
    assert 1e-4 < norm([a - b for a, b in zip(coarse, exact, strict=True)]) / norm(exact) < 2**-5


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_precision_is_refused(engine: str) -> None:
    with pytest.raises(PrivacyError, match="'fp32' or 'bf16'; got 'fp16'"):
        make_engine(engine, linear([1.0]), square_loss, precision="fp16")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e10, 1e18])
def test_the_clip_holds_for_gradients_of_any_size(engine: str, size: float) -> None:
    torch.manual_seed(0)
    rows = {"x": torch.randn(3, 1000) * size, "y": torch.full((3,), 1.0)}
    total = make_engine(engine, linear([0.0] * 1000), square_loss).clipped_sum([rows], 0.7)
    assert norm(total) <= 0.7 * (1 + 1e-5)
    assert norm(total) == pytest.approx(0.7 if size >= 1 else 0, rel=1e-5, abs=1e-20)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_contributes_zero_and_spoils_nobody_elses(engine: str, bad: float) -> None:
    good = [person(([1.0, 2.0], 1.0)), person(([2.0, 1.0], 1.0))]
    broken = person(([bad, 1.0], 1.0), ([1.0, 1.0], 1.0))
    run = make_engine(engine, linear([1.0, 1.0]), square_loss)
    (expected,) = run.clipped_sum(good, 1.0)
    (found,) = run.clipped_sum([good[0], broken, good[1]], 1.0)
    assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_rows_in_a_batch_leave_the_neighbours_as_they_were(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, engine: str
) -> None:
    patients = patients_of(3)
    spoiled = {**patients[1], "x": patients[1]["x"] * float("nan")}
    run = make_engine(engine, denoiser, loss)
    expected = run.clipped_sum([patients[0], patients[2]], 1.0)
    for part, wanted in zip(run.clipped_sum([patients[0], spoiled, patients[2]], 1.0), expected, strict=True):
        assert torch.allclose(part, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_patients_or_patients_without_rows_give_zeros(denoiser: nn.Module, loss: LossPerRow, engine: str) -> None:
    empty = {"x": torch.zeros(0, 2, 16, 16), "noise": torch.zeros(0, 2, 16, 16), "sigma": torch.zeros(0)}
    run = make_engine(engine, denoiser, loss)
    for total in (run.clipped_sum([], 1.0), run.clipped_sum([{**empty, "label": torch.zeros(0).long()}], 1.0)):
        assert [part.shape for part in total] == [p.shape for p in denoiser.parameters()]
        assert norm(total) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_callers_model_is_left_as_it_was(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, engine: str
) -> None:
    denoiser.eval()
    weights = copy.deepcopy(denoiser.state_dict())
    attributes = {name: set(vars(module)) for name, module in denoiser.named_modules()}
    marks = {name: set(vars(parameter)) for name, parameter in denoiser.named_parameters()}
    next(denoiser.parameters()).grad = kept = torch.ones_like(next(denoiser.parameters()))
    make_engine(engine, denoiser, loss).clipped_sum(patients_of(3), 1.0)
    assert all(torch.equal(weights[key], value) for key, value in denoiser.state_dict().items())
    assert {name: set(vars(module)) for name, module in denoiser.named_modules()} == attributes
    assert {name: set(vars(parameter)) for name, parameter in denoiser.named_parameters()} == marks
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in denoiser.modules())
    assert not any(m._backward_hooks or m._backward_pre_hooks for m in denoiser.modules())
    assert next(denoiser.parameters()).grad is kept
    copy.deepcopy(denoiser).train()(torch.zeros(1, 2, 16, 16), torch.ones(1), torch.zeros(1).long()).sum().backward()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_fails_leaves_no_hooks_behind(denoiser: nn.Module, patients_of: Patients, engine: str) -> None:
    def failing(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        model(rows["x"], rows["sigma"], rows["label"])
        raise RuntimeError("a fault of the data")

    with pytest.raises(RuntimeError, match="a fault of the data"):
        make_engine(engine, denoiser, failing).clipped_sum(patients_of(1), 1.0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.modules())
    assert not any(hasattr(parameter, "grad_sample") for parameter in denoiser.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_parameters_are_left_out(
    denoiser: nn.Module, loss: LossPerRow, patients_of: Patients, engine: str
) -> None:
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_("attentions" in name)
    total = make_engine(engine, denoiser, loss).clipped_sum(patients_of(2), 1.0)
    assert [part.shape for part in total] == [parameter.shape for parameter in trainable(denoiser)]
    assert norm(total) > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_layers_that_mix_patients_are_refused(engine: str) -> None:
    for layer in (nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True)):
        with pytest.raises(PrivacyError, match=r"layers \['1'\] mix patients"):
            make_engine(engine, nn.Sequential(nn.Linear(2, 2), layer), square_loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_is_not_one_value_a_row_is_refused(engine: str) -> None:
    with pytest.raises(PrivacyError, match=r"one value a row, \[\d+\]; got shape \[\]"):
        make_engine(engine, linear([1.0]), lambda model, rows: square_loss(model, rows).mean()).clipped_sum(
            [person(([1.0], 1.0), ([2.0], 1.0))], 1.0
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_unequal_length_are_refused(engine: str) -> None:
    with pytest.raises(PrivacyError, match="equal first dimensions"):
        make_engine(engine, linear([1.0]), square_loss).clipped_sum([{"x": torch.ones(2, 1), "y": torch.ones(3)}], 1.0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_that_bounds_nothing_is_refused(engine: str, clip_norm: float) -> None:
    with pytest.raises(PrivacyError, match="clip norm"):
        make_engine(engine, linear([1.0]), square_loss).clipped_sum([person(([1.0], 1.0))], clip_norm)


def test_a_use_of_a_weight_that_the_hooks_can_not_see_is_refused() -> None:
    class Sideways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.inner.weight.T

    with pytest.raises(PrivacyError, match=r"inner\.weight: use privacy\.engine=reference"):
        OpacusEngine(Sideways(), square_loss).clipped_sum([person(([1.0, 2.0], 1.0))], 1.0)


def test_half_precision_gradients_are_clipped_and_summed_in_double_precision() -> None:
    model = linear([0.0] * 50).to(torch.bfloat16)
    rows = {"x": torch.full((1, 50), 3.0, dtype=torch.bfloat16), "y": torch.ones(1, dtype=torch.bfloat16)}
    total = ReferenceEngine(model, square_loss).clipped_sum([rows] * 7, 1.0)
    assert total[0].dtype == torch.float64
    assert norm(total) == pytest.approx(7.0, rel=1e-12)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(PrivacyError, match="'reference', 'opacus' or 'fused'; got 'ghost'"):
        make_engine("ghost", linear([1.0]), square_loss)

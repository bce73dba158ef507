"""The fused engine: exact on every network it takes, named refusal of what it doesn't, and planted faults found."""

import copy
import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedmedgen.errors import SelfCheckError
from fedmedgen.models.diffusion_transformer import DiffusionTransformer
from fedmedgen.privacy import contractions, fused_engine, fused_layers
from fedmedgen.privacy.fused_engine import FusedEngine
from fedmedgen.privacy.per_patient import LossPerRow, ReferenceEngine, Rows
from fedmedgen.privacy.selfcheck import check_engine

Patients = Callable[[int], list[dict[str, Tensor]]]


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    apart = torch.stack([(a - b).norm() for a, b in zip(found, wanted, strict=True)]).norm()
    return float(apart / torch.stack([part.norm() for part in wanted]).norm())


def attentive() -> UNet2DModel:
    """Attention at every level."""
    blocks = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            16,
            1,
            1,
            block_out_channels=(16, 32),
            norm_num_groups=4,
            layers_per_block=1,
            attention_head_dim=8,
            num_class_embeds=1,
            **blocks,
        )


def transformer() -> DiffusionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DiffusionTransformer(in_channels=1, num_class_embeds=1, width=32, depth=2, heads=2)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        return model


def images(rows: Sequence[int], size: int = 16, dtype: torch.dtype = torch.float32) -> list[Rows]:
    """Patients of so many rows each, larger and larger."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"x": (1 + number) * torch.randn(count, 1, size, size, generator=generator, dtype=dtype)}
        for number, count in enumerate(rows)
    ]


def restored(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    x = rows["x"]
    times = torch.full((len(x),), 3.0, device=x.device)
    out = model(x, times, class_labels=torch.zeros_like(times).long(), return_dict=False)[0]
    return (out - x).square().mean(dim=(1, 2, 3))


def of_sequence(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    return model(rows["x"]).square().flatten(1).mean(dim=1)


@pytest.mark.parametrize("rows", [[1], [1] * 5, [4, 4, 4], [3, 1, 9, 2, 20, 1]])
@pytest.mark.parametrize("network", [attentive, transformer])
@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_the_sum_is_that_of_one_patient_at_a_time_to_a_millionth(
    network: Callable[[], nn.Module], rows: list[int], clip_norm: float
) -> None:
    model = network()
    wanted = ReferenceEngine(model, restored).clipped_sum(images(rows), clip_norm)
    assert distance(FusedEngine(model, restored).clipped_sum(images(rows), clip_norm), wanted) < 1e-6


def test_a_model_in_channels_last_makes_no_difference() -> None:
    model, people = attentive(), images([1, 2, 2])
    wanted = ReferenceEngine(copy.deepcopy(model), restored).clipped_sum(people, 1.0)
    model.to(memory_format=torch.channels_last)
    people = [{"x": rows["x"].to(memory_format=torch.channels_last)} for rows in people]
    assert distance(FusedEngine(model, restored).clipped_sum(people, 1.0), wanted) < 1e-6


class Drawn(nn.Module):
    """Convolutions, norms, a table and linear layers of drawn sizes; `mix` is used twice."""

    def __init__(self, width: int, groups: int, window: int, stride: int, padding: int, bias: bool) -> None:
        super().__init__()
        self.door = nn.Conv2d(1, width, window, stride, padding, bias=bias)
        self.group = nn.GroupNorm(groups, width)
        self.wide = nn.Conv2d(width, width, (3, 1), padding=(2, 0), dilation=2, bias=bias)
        self.point = nn.Conv2d(width, width, 1, bias=bias)
        self.table = nn.Embedding(3, width)
        self.layer = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(torch.tanh(self.wide(nn.functional.silu(self.group(self.door(x))))))
        tokens = self.layer(x.flatten(2).transpose(1, 2)) + self.table((x[:, 0, 0, 0] > 0).long())[:, None]
        return self.mix(torch.tanh(self.mix(tokens)))


@st.composite
def drawn_networks(draw: st.DrawFn) -> nn.Module:
    groups = draw(st.integers(1, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 99)))
        model = Drawn(
            groups * draw(st.integers(1, 5)), groups, draw(st.integers(1, 3)), draw(st.integers(1, 2)),
            draw(st.integers(0, 2)), draw(st.booleans()),
        ).double()  # fmt: skip
    for name in draw(st.lists(st.sampled_from(["door", "group", "wide", "table", "layer"]), max_size=3)):
        for parameter in getattr(model, name).parameters():
            parameter.requires_grad_(draw(st.booleans()))
    return model


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(model=drawn_networks(), rows=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_drawn_networks_in_double_precision_agree_to_the_last_digits(model: nn.Module, rows: list[int]) -> None:
    people = images([3 * count for count in rows], size=7, dtype=torch.float64)  # some of more than `max_rows`
    wanted = ReferenceEngine(model, of_sequence).clipped_sum(people, 0.01)
    engine = FusedEngine(model, of_sequence, max_rows=8)
    assert distance(engine.clipped_sum(people, 0.01), wanted) < 1e-10
    assert engine._instead is None


def test_a_use_no_layer_sees_is_named_and_the_reference_takes_the_whole_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Sideways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.scale

    model, people = Sideways(), [{"x": torch.randn(2, 4)} for _ in range(3)]
    wanted = ReferenceEngine(model, of_sequence).clipped_sum(people, 0.1)
    with caplog.at_level(logging.WARNING):
        assert distance(FusedEngine(model, of_sequence).clipped_sum(people, 0.1), wanted) < 1e-12
    assert "can't take scale: a use outside" in caplog.text
    assert "reference engine takes the whole model" in caplog.text


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Conv2d(4, 4, 1, groups=2), "0.weight: a convolution of groups"),
        (nn.Conv2d(4, 4, 1, padding="same"), "0.weight: a convolution of groups, or padded by name"),
        (nn.Conv1d(4, 4, 1), "0.weight: a use outside"),
        (nn.LayerNorm((4, 4)), "0.weight: a LayerNorm over several dimensions"),
        (nn.PReLU(), "0.weight: a use outside"),
        *[(nn.Embedding(5, 4, padding_idx=at), "0.weight: an embedding that pads") for at in (0, 1, 2)],
        (nn.Embedding(5, 4, max_norm=2.0), "0.weight: an embedding that pads, rescales"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "bias: a partner that is computed from weights"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "bias: a partner that is computed from weights"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True)), "a layer or the loss"),
    ],
)
def test_a_layer_it_can_not_take_is_named(layer: nn.Module, words: str, caplog: pytest.LogCaptureFixture) -> None:
    people = [{"x": torch.randn(2, 4, 4) if isinstance(layer, nn.Conv1d) else torch.randn(2, 4, 4, 4)}]
    if isinstance(layer, nn.Embedding):
        people = [{"x": torch.tensor([[0, 1], [2, 3]])}]
    with caplog.at_level(logging.WARNING):
        FusedEngine(nn.Sequential(layer), of_sequence).clipped_sum(people, 1.0)
    assert words in caplog.text


def test_rows_that_do_not_come_first_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    def turned(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        return model(rows["x"].transpose(0, 1)).square().mean(dim=(0, 2))

    with caplog.at_level(logging.WARNING):
        FusedEngine(nn.Linear(4, 4), turned).clipped_sum([{"x": torch.randn(2, 3, 4)}], 1.0)
    assert "an input of shape [3, 2, 4], not of 2 rows in turn" in caplog.text


class Places(nn.Module):
    """A table of places, added to every row's tokens: it has no rows, though as many places as there may be rows."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.table, self.mix, self.tokens = nn.Embedding(tokens, 4), nn.Linear(4, 4), tokens

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x + self.table(torch.arange(self.tokens)))


def of_tokens_first(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    return model(rows["x"].transpose(0, 1)).square().mean(dim=(0, 2))


def of_doubled(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    return model(torch.cat([rows["x"], 2 * rows["x"]])).square().mean(dim=(1, 2)).view(2, -1).sum(dim=0)


def of_adversary(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    x = rows["x"].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(x).square().sum(), x)
    return model(rows["x"] + 0.1 * slope.sign()).square().mean(dim=(1, 2))


def of_penalty(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    x = rows["x"].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return slope.square().mean(dim=(1, 2)) + 0.0 * rows["x"].sum(dim=(1, 2))


def of_checkpoint(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    return checkpoint(model, rows["x"], use_reentrant=False).square().mean(dim=(1, 2))


class Checkpointed(nn.Module):
    """Its second layer is computed again on the way back, where no call is seen; its square weights fit either way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.second, self.first(x), use_reentrant=False, determinism_check="none")
        return found


class Laid(nn.Module):
    """Tokens as images that `contiguous` may give back as they lie, which `then` would find out."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix, self.conv, self.then = nn.Linear(4, 4), nn.Conv2d(4, 4, 1), then

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix(x) + 1
        image = self.then(tokens.view(-1, 4, 4, 4).permute(0, 3, 1, 2).contiguous())
        found: Tensor = self.conv(image).flatten(2).transpose(1, 2) + tokens
        return found


def strided(image: Tensor) -> Tensor:
    return image.as_strided(image.shape, (64, 16, 4, 1))


def doubled(image: Tensor) -> Tensor:
    return image.mul_(2)


def as_it_is(image: Tensor) -> Tensor:
    return image.contiguous()


@pytest.mark.parametrize("model", [Checkpointed(), Laid(doubled), Laid(strided)], ids=["again", "in place", "strided"])
def test_what_the_engine_would_not_see_is_named(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    FusedEngine(model, of_sequence).clipped_sum([{"x": torch.randn(2, 16, 4)}], 1.0)
    assert "the reference engine takes the whole model" in caplog.text


def test_an_image_that_contiguous_gives_back_stays_with_the_engine() -> None:
    engine = FusedEngine(Laid(as_it_is), of_sequence)
    engine.clipped_sum([{"x": torch.randn(2, 16, 4)}], 1.0)
    assert engine.instead is None


def test_rows_of_another_shape_are_tried_too(caplog: pytest.LogCaptureFixture) -> None:
    class Sized(nn.Module):
        """Its table of places is for pictures of 16 tokens alone."""

        def __init__(self) -> None:
            super().__init__()
            self.places, self.mix = Places(16), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.places(x) if x.shape[1] == 16 else self.mix(x)
            return found

    model, people = Sized(), [{"x": torch.randn(1, 9, 4)}, *({"x": torch.randn(1, 16, 4)} for _ in range(16))]
    wanted = ReferenceEngine(model, of_sequence).clipped_sum(people, 0.1)
    assert distance(FusedEngine(model, of_sequence).clipped_sum(people, 0.1), wanted) < 1e-6
    assert "the reference engine takes the whole model" in caplog.text


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (Checkpointed(), of_sequence), (Laid(doubled), of_sequence), (Laid(strided), of_sequence),
        (Laid(as_it_is), of_sequence),
        (Places(16), of_sequence), (nn.Linear(4, 4), of_tokens_first), (nn.Linear(4, 4), of_doubled),
        (nn.Linear(4, 4), of_adversary), (nn.Linear(4, 4), of_penalty), (nn.Linear(4, 4), of_checkpoint),
    ],
    ids=[
        "again", "in place", "strided", "as it is", "places", "tokens first", "doubled", "adversary", "penalty",
        "checkpoint",
    ],
)  # fmt: skip
@pytest.mark.parametrize("rows", [[1] * 16, [4] * 9, [2, 2, 16]])
def test_no_trick_of_shapes_or_gradients_moves_a_sum_unseen(
    model: nn.Module, loss: LossPerRow, rows: list[int]
) -> None:
    """Whether it is taken or named: the sum is right, and a patient moves it by the clip at most."""
    generator = torch.Generator().manual_seed(0)
    people = [{"x": (1 + n) * torch.randn(count, 16, 4, generator=generator)} for n, count in enumerate(rows)]
    for clip in (1e3, 1e-2):
        wanted = ReferenceEngine(model, loss).clipped_sum(people, clip)
        assert distance(FusedEngine(model, loss).clipped_sum(people, clip), wanted) < 1e-5
        fewer = FusedEngine(model, loss).clipped_sum(people[:-1], clip)
        moved = torch.stack([(a - b).norm() for a, b in zip(wanted, fewer, strict=True)]).norm()
        assert float(moved) <= clip * (1 + 1e-5)


def test_an_index_below_zero_moves_nobody_else() -> None:
    model = nn.Embedding(3, 4)
    good, bad = {"x": torch.tensor([[0, 1]])}, {"x": torch.tensor([[-1, 2]])}
    engine = FusedEngine(model, of_sequence)
    engine.clipped_sum([good], 1.0)
    with pytest.raises(IndexError):
        engine.clipped_sum([good, bad], 1.0)


def test_patients_of_other_sizes_and_of_more_rows_than_fit_are_taken_too() -> None:
    model = attentive()
    people = [*images([1, 2, 20]), *images([2, 1], size=8)]
    wanted = ReferenceEngine(model, restored).clipped_sum(people, 0.1)
    engine = FusedEngine(model, restored, max_rows=8)
    assert distance(engine.clipped_sum(people, 0.1), wanted) < 1e-6
    assert engine.instead is None


def test_a_batchs_gradients_are_gone_before_the_next_batch_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    plain = fused_layers.Sink.add

    def watched(sink: fused_layers.Sink, parameter: Tensor, gradient: Tensor) -> None:
        sinks.add(sink)
        alive.append(len(sinks))
        plain(sink, parameter, gradient)

    class Watched(fused_layers.Sink):
        __hash__ = object.__hash__

    sinks: weakref.WeakSet[Any] = weakref.WeakSet()
    monkeypatch.setattr(fused_layers.Sink, "add", watched)
    monkeypatch.setattr(fused_engine, "Sink", Watched)
    gc.disable()
    try:
        FusedEngine(attentive(), restored, max_rows=4).clipped_sum(images([1] * 16), 1.0)
    finally:
        gc.enable()
    assert max(alive) == 1


def test_a_check_by_another_engine_says_so() -> None:
    def rows(count: int) -> list[Rows]:
        generator = torch.Generator().manual_seed(0)
        return [{"x": torch.randn(1 + n % 3, 16, 4, generator=generator)} for n in range(count)]

    found = check_engine("fused", Places(16), of_sequence, rows)
    assert found.engine == "reference, in the place of fused"


def test_batches_hold_no_more_gradients_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, model = [], nn.Linear(4, 4)

    def watched(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        sizes.append(len(rows["x"]))
        return of_sequence(model, rows)

    monkeypatch.setattr(fused_engine, "LARGEST_BATCH", 3 * 4 * 20)
    FusedEngine(model, watched).clipped_sum([{"x": torch.randn(2, 4)} for _ in range(4)], 1.0)
    assert sizes == [2, 3, 6, 6]  # of the trial first


def drop(name: str) -> Callable[..., None]:
    kept = fused_layers.Sink.add

    def add(sink: Any, parameter: nn.Parameter, gradient: Tensor) -> None:
        if parameter.dim() != {"convolutions": 4, "norms": 1}[name]:
            kept(sink, parameter, gradient)

    return add


def neighbours(x: Tensor, dy: Tensor, *rest: Any) -> Tensor:
    """Every row of a batch counted for the patient of the row before."""
    return contractions.convolution_weight(x.roll(1, 0), dy.roll(1, 0), *rest)


def without_a_layer(total: Sequence[Tensor], sums: Sequence[Tensor], clip_norm: float, rows: int) -> None:
    """Clipped by the norm of the smaller layers alone."""
    for patient in range(len(sums[0])):
        size = float(torch.stack([own[patient, : own.shape[1] // 2].double().norm() for own in sums]).norm())
        for part, own in zip(total, sums, strict=True):
            part.add_(own[patient], alpha=clip_norm / max(size, clip_norm * rows))


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ((fused_layers.Sink, "add"), drop("convolutions")),
        ((fused_layers.Sink, "add"), drop("norms")),
        ((fused_layers, "convolution_weight"), neighbours),
        ((fused_engine, "add_clipped_batch"), without_a_layer),
    ],
    ids=["misses convolutions", "misses norms and biases", "sums a neighbour's rows", "norm misses a layer"],
)
def test_a_fault_planted_in_the_engine_turns_the_self_check_red(
    denoiser: nn.Module,
    loss: LossPerRow,
    patients_of: Patients,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
    fault: Callable[..., Any],
) -> None:
    monkeypatch.setattr(*place, fault)
    with pytest.raises(SelfCheckError, match="engine fused"):
        check_engine("fused", denoiser, loss, patients_of)

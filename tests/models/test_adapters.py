"""Low-rank adapters: the same network at first, exact gradients, gone without a trace at the end."""

import copy

import pytest
import torch
from torch import nn

from fedmedgen.data import phantoms
from fedmedgen.errors import SettingsError
from fedmedgen.models.adapters import Adapted, adapt, merge
from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.privacy.selfcheck import check_engine
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.fit import Schedule, fit_ordinary
from fedmedgen.training.losses import diffusion_loss
from fedmedgen.training.rows import Rows, diffusion_rows

TINY = GeneratorSettings(unshuffle=2, channels=(8, 16), attention=(False, True), norm_groups=4)
DIT = GeneratorSettings(family="dit", width=16, heads=2, depth=1, patch=4)


def small(settings: GeneratorSettings = TINY) -> Denoiser:
    return build_denoiser(settings, num_classes=2, num_masks=0, size=(16, 16), seed=0)


def adapted(trainable: str, settings: GeneratorSettings = TINY, rank: int = 1) -> Denoiser:
    denoiser = small(settings)
    adapt(denoiser.unet, trainable, rank=rank, seed=3)
    return denoiser


def rows(count: int) -> list[Rows]:
    """Patients of one to three phantoms."""
    cases = phantoms.draw("chest", 3 * count, size=(16, 16), seed=0)
    generator = torch.Generator().manual_seed(0)
    return [diffusion_rows(cases[3 * n : 3 * n + 1 + n % 3], 2, generator, TINY, 2) for n in range(count)]


def output(denoiser: Denoiser) -> torch.Tensor:
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = denoiser(x, torch.tensor([0.3, 2.0]), torch.tensor([0, 1]))
    return found


@pytest.mark.parametrize("settings", [TINY, DIT], ids=["unet", "dit"])
def test_an_adapted_network_computes_what_it_did_and_merged_what_it_learned(settings: GeneratorSettings) -> None:
    denoiser = adapted("lora", settings)
    torch.testing.assert_close(output(denoiser), output(small(settings)))
    with torch.no_grad():
        for name, weight in denoiser.named_parameters():
            if name.endswith("up.weight"):
                weight.normal_(generator=torch.Generator().manual_seed(2))
    learned = output(denoiser)
    assert not torch.allclose(learned, output(small(settings)))
    merge(denoiser.unet)
    torch.testing.assert_close(output(denoiser), learned, atol=1e-4, rtol=1e-4)
    assert set(denoiser.state_dict()) == set(small(settings).state_dict())
    assert all(weight.requires_grad for weight in denoiser.parameters())


@pytest.mark.parametrize("engine", ["reference", "opacus"])
def test_the_gradients_of_adapters_are_exact_by_patient(engine: str) -> None:
    denoiser = adapted("lora")
    found = check_engine(engine, denoiser, diffusion_loss, rows)
    assert found.parameters == sum(weight.numel() for weight in denoiser.parameters() if weight.requires_grad)


def test_training_moves_what_trains_and_nothing_else() -> None:
    denoiser = adapted("lora")
    before = copy.deepcopy(denoiser.state_dict())
    schedule = Schedule(learning_rate=1e-2, first_step=0, steps=2, total_steps=2)
    fit_ordinary(denoiser, diffusion_loss, lambda _: rows(1)[0], schedule=schedule, generator=torch.Generator())
    moved = {name for name, value in denoiser.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {name for name, weight in denoiser.named_parameters() if not weight.requires_grad}
    assert moved
    assert moved.isdisjoint(frozen)
    assert {name for name in before if name.endswith(".up.weight")} <= moved


def test_adapters_are_a_small_part_of_a_network_of_usual_width() -> None:
    wide = GeneratorSettings(channels=(48, 64), attention=(False, True))
    denoiser = adapted("lora", wide, rank=4)
    whole = sum(weight.numel() for weight in small(wide).parameters())
    assert sum(weight.numel() for weight in denoiser.parameters() if weight.requires_grad) < 0.26 * whole


def test_layers_that_adapters_would_not_make_smaller_train_whole() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(4, 4))
    adapt(network, "lora", rank=4, seed=0)
    assert [type(layer) for layer in network] == [Adapted, nn.Linear]


def test_attention_alone_or_norms_alone_train() -> None:
    attention, norms = (
        {name for name, weight in adapted(which).named_parameters() if weight.requires_grad}
        for which in ("attention", "norms")
    )
    assert attention
    assert all(".attentions." in name for name in attention)
    assert {"unet.conv_norm_out.weight", "unet.conv_norm_out.bias"} <= norms
    assert not any("conv1" in name or "to_q" in name for name in norms)


def test_a_network_without_attention_has_none_to_train() -> None:
    plain = GeneratorSettings(channels=(8, 16), attention=(False, False), norm_groups=4)
    with pytest.raises(SettingsError, match="leaves nothing to train"):
        adapted("attention", plain)

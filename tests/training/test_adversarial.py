"""A GAN's two sides: what the critic loses by, and how the decoder learns from it alone."""

import pytest
import torch
from torch import Tensor

from fedmedgen.data import phantoms
from fedmedgen.models.one_step import OneStepGenerator, build_one_step
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.adversarial import (
    DecoderTraining,
    critic_loss,
    decoder_loss,
    fake_loss,
    fake_rows,
    fit_pair,
    pair_rows,
    real_loss,
)
from fedmedgen.training.fit import Schedule

TINY = GeneratorSettings(family="gan", width=16, norm_groups=4, code=4, label_dropout=0)
CASES = phantoms.draw("chest", 12, size=(8, 8), seed=0)


def pair() -> OneStepGenerator:
    return build_one_step(TINY, num_classes=3, num_masks=1, size=(8, 8), seed=0)


def rows(draws: int = 1) -> dict[str, Tensor]:
    return pair_rows(CASES[:4], draws, torch.Generator().manual_seed(0), TINY, 3, ("background", "lung"))


def copies(weights: list[torch.nn.Parameter]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


def test_a_real_image_comes_once_however_many_draws_are_asked_for() -> None:
    assert len(rows(draws=5)["x"]) == 4


def test_the_critic_loses_by_the_hinge_on_each_side() -> None:
    model, given = pair(), rows()
    drawn = model.decoder(given["noise"], given["label"])
    expected = (1 - model.reader(given["x"], given["label"])).clamp(min=0) + (
        1 + model.reader(drawn, given["label"])
    ).clamp(min=0)
    torch.testing.assert_close(critic_loss(model, given), expected)
    torch.testing.assert_close(decoder_loss(model, given), -model.reader(drawn, given["label"]))


def test_an_image_whose_mask_is_unknown_teaches_the_critic_nothing() -> None:
    model, given = pair(), rows()
    given["weight"][:, 1] = 0
    torch.autograd.backward(real_loss(model, given).sum())
    assert not any(weight.grad.any() for weight in model.reader.parameters() if weight.grad is not None)


def test_the_term_of_drawn_images_moves_the_critic_and_not_the_decoder() -> None:
    model = pair()
    model.decoder.requires_grad_(True)
    torch.autograd.backward(fake_loss(model, rows()).sum())
    assert all(weight.grad is None for weight in model.decoder.parameters())
    assert any(weight.grad is not None and weight.grad.any() for weight in model.reader.parameters())


def test_a_decoder_learns_from_a_critic_that_stays_as_it_is() -> None:
    model, noise = pair(), torch.Generator().manual_seed(1)
    before, given = copies(list(model.reader.parameters())), fake_rows(model, 64, torch.Generator().manual_seed(2))
    start, training = float(decoder_loss(model, given).mean().detach()), DecoderTraining(model)
    for _ in range(15):
        training.step(3e-3, noise)
    assert float(decoder_loss(model, given).mean().detach()) < start - 0.05
    assert all(torch.equal(a, b) for a, b in zip(before, model.reader.parameters(), strict=True))
    trains = {name.partition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trains == {"reader"}


@pytest.mark.parametrize("broken", [0, 2])
def test_a_decoder_goes_on_from_its_state_bit_by_bit(broken: int) -> None:
    unbroken, other = pair(), pair()
    training, first = DecoderTraining(unbroken), DecoderTraining(other)
    noise, same = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    for _ in range(4):
        training.step(1e-3, noise)
    for _ in range(broken):
        first.step(1e-3, same)
    state = {name: value.clone() for name, value in first.state.items()}
    second = DecoderTraining(other, state)
    for _ in range(4 - broken):
        second.step(1e-3, same)
    assert all(torch.equal(value, second.state[name]) for name, value in training.state.items())
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), other.parameters(), strict=True))


def test_a_pair_in_turn_tells_the_decoder_what_images_look_like() -> None:
    model = pair()
    real = pair_rows(CASES, 1, torch.Generator().manual_seed(0), TINY, 3, ("background", "lung"))

    def distance() -> float:
        drawn = model.draw(torch.arange(60) % 3, range(60))
        return float((drawn.mean(dim=0) - real["x"].mean(dim=0)).square().mean())

    before = distance()
    schedule = Schedule(learning_rate=2e-3, first_step=0, steps=80, total_steps=80)
    fit_pair(model, critic_loss, lambda _: real, schedule=schedule, generator=torch.Generator().manual_seed(3))
    assert distance() < 0.6 * before

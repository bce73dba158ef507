"""A lean copy of a denoiser draws what the denoiser draws, to bfloat16's rounding."""

import copy

import pytest
import torch

from fedmedgen.models import samplers
from fedmedgen.models.denoiser import build_denoiser
from fedmedgen.models.lean import lean
from fedmedgen.settings import GeneratorSettings

FAMILIES = {
    "unet": GeneratorSettings(channels=(16, 32), attention=(False, True), norm_groups=4),
    "dit": GeneratorSettings(family="dit", width=32, depth=2, heads=2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lean_copy_draws_what_the_denoiser_draws(family: str) -> None:
    model = build_denoiser(FAMILIES[family], num_classes=2, num_masks=0, size=(16, 16), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    before = copy.deepcopy(model.state_dict())
    noise, labels = torch.randn(4, 1, 16, 16, generator=generator), torch.tensor([0, 1, 0, 2])
    with torch.inference_mode():
        wanted, found = (
            samplers.dpmpp(samplers.guided(each, labels, 1.0), noise, 10) for each in (model.eval(), lean(model))
        )
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    assert not torch.equal(found, wanted)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

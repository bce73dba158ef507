"""What a denoiser is, whichever family its network is of."""

import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmedgen.data import phantoms
from fedmedgen.errors import SettingsError
from fedmedgen.models import samplers, saving
from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.models.segmenter import from_denoiser
from fedmedgen.privacy.per_patient import ENGINES, make_engine
from fedmedgen.privacy.selfcheck import check_engine
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.fit import Schedule, fit_ordinary
from fedmedgen.training.losses import diffusion_loss
from fedmedgen.training.rows import diffusion_rows

SHARED = {"width": 32, "depth": 2, "heads": 2, "sampler_steps": 4}
FAMILIES = {
    "dit": GeneratorSettings(family="dit", patch=4, **SHARED),
    "coefficients": GeneratorSettings(family="coefficients", coefficients=64, preconditioning="spectral", **SHARED),
}
FRESH = """
import sys
import numpy as np
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
drawn = pipe(label=["sick", "normal"], num_images=2, seed=3)
try:
    import fedmedgen
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package was importable")
np.savez(sys.argv[2], images=np.stack([np.asarray(image) for image in drawn.images]), masks=drawn.masks,
         labels=drawn.labels)
"""


def small(family: str, size: tuple[int, int] = (16, 24), masks: int = 1, seed: int = 0) -> Denoiser:
    return build_denoiser(FAMILIES[family], num_classes=2, num_masks=masks, size=size, seed=seed)


def moved(family: str) -> Denoiser:
    """One in which no weight is zero."""
    model, generator = small(family), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.name_classes(["normal", "sick"], ["background", "lung"]).eval()


def rows(settings: GeneratorSettings, count: int) -> list[dict[str, Tensor]]:
    """Patients of one to three phantoms."""
    cases = phantoms.draw("chest", 3 * count, size=(16, 24), seed=0)
    cases = [dataclasses.replace(case, label=index % 2) for index, case in enumerate(cases)]
    generator = torch.Generator().manual_seed(0)
    return [
        diffusion_rows(cases[3 * n : 3 * n + 1 + n % 3], 2, generator, settings, 2, ("background", "lung"))
        for n in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(28, 28), (64, 64), (30, 37), (16, 32)])
def test_a_denoised_image_has_the_size_of_the_noisy_one(family: str, size: tuple[int, int]) -> None:
    x = torch.randn(2, 2, *size)
    out = small(family, size)(x, torch.tensor([0.002, 80.0]), torch.tensor([0, 2]))
    assert out.shape == x.shape
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_depend_on_the_seed_alone(family: str) -> None:
    before = torch.random.get_rng_state()
    models = []
    for seed in (4, 4, 5):
        torch.manual_seed(len(models))
        models.append(list(small(family, seed=seed).parameters()))
    first, same, other = models
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    torch.random.set_rng_state(before)
    small(family)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("family", FAMILIES)
def test_training_mode_draws_nothing(family: str) -> None:
    model, x = moved(family).train(), torch.randn(2, 2, 16, 24)
    first, second = (model(x, torch.ones(2), torch.tensor([0, 1])) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_label_and_noise_level_change_what_the_network_adds(family: str) -> None:
    model, x = moved(family), torch.randn(1, 2, 16, 24)
    one, two, labels = torch.tensor([1.0]), torch.tensor([2.0]), (torch.tensor([0]), torch.tensor([2]))
    assert not torch.allclose(model(x, one, labels[0]), model(x, one, labels[1]))
    assert not torch.allclose(model(x, one, labels[0]), model(x, two, labels[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_with_weights_is_of_a_kind_whose_per_patient_gradients_are_known(family: str) -> None:
    kinds = {type(module) for module in small(family).modules() if list(module.parameters(recurse=False))}
    assert kinds <= {nn.Linear, nn.LayerNorm, nn.Embedding}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("precision", "largest"), [("fp32", 5e-6), ("bf16", 0.015)])
def test_all_engines_equal_one_row_at_a_time(family: str, engine: str, precision: str, largest: float) -> None:
    model = small(family)
    result = check_engine(engine, model, diffusion_loss, partial(rows, FAMILIES[family]), precision=precision)
    assert 0 < result.largest_error < largest
    assert result.parameters == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engines_agree_on_a_fresh_model_too(family: str) -> None:
    model, patients = small(family), rows(FAMILIES[family], 4)
    reference, *others = (make_engine(name, model, diffusion_loss).clipped_sum(patients, 1.0) for name in ENGINES)
    for other in others:
        for ours, theirs in zip(reference, other, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_short_ordinary_fit_lowers_the_loss(family: str) -> None:
    settings = dataclasses.replace(FAMILIES[family], with_masks=False)
    model = small(family, masks=0)
    cases = phantoms.draw("chest", 80, size=(16, 24), seed=0)
    cases = [dataclasses.replace(case, label=index % 2) for index, case in enumerate(cases)]
    held_out = diffusion_rows(cases[64:], 8, torch.Generator().manual_seed(1), settings, 2)

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(64, (32,), generator=generator).tolist()
        return diffusion_rows([cases[index] for index in chosen], 1, generator, settings, 2)

    with torch.no_grad():
        before = float(diffusion_loss(model, held_out).mean())
    schedule = Schedule(learning_rate=3e-3, first_step=0, steps=100, total_steps=100)
    fit_ordinary(model, diffusion_loss, draw, schedule=schedule, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        after = float(diffusion_loss(model, held_out).mean())
    assert after < 0.8 * before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_generator_comes_back_the_same(family: str, tmp_path: Path) -> None:
    model = moved(family)
    saving.save_generator(model, tmp_path / "a", card={})
    loaded = saving.load_generator(tmp_path / "a")
    assert isinstance(loaded, Denoiser)
    assert type(loaded.unet) is type(model.unet)
    assert loaded.config == model.config
    theirs, ours = loaded.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    saving.save_generator(loaded, tmp_path / "b", card={})
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*") if path.name != "config.json"]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_generator_samples_with_diffusers_alone(family: str, tmp_path: Path) -> None:
    model = moved(family)
    saving.save_generator(model, tmp_path / "generator", card={})
    where = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | where
    # -S leaves out site-packages' .pth files and so an editable install of this package
    code = f"import sys; sys.path += {[path for path in sys.path if 'site-packages' in path]}\n{FRESH}"
    command = [sys.executable, "-S", "-c", code, str(tmp_path / "generator"), str(tmp_path / "drawn.npz")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    noise = torch.randn((4, 2, 16, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        denoise = samplers.guided(model, torch.tensor([1, 1, 0, 0]), 1.0)
        ours = samplers.heun(denoise, noise, samplers.karras_sigmas(4))
    with np.load(tmp_path / "drawn.npz", allow_pickle=False) as drawn:
        assert drawn["labels"].tolist() == ["sick", "sick", "normal", "normal"]
        assert drawn["masks"].shape == (4, 16, 24)
        theirs = torch.from_numpy(drawn["images"]).float() / 127.5 - 1
    torch.testing.assert_close(theirs, ours[:, 0].clamp(-1, 1), atol=1.5 / 127.5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_segmenter_of_another_family_than_the_unet_is_refused(family: str) -> None:
    with pytest.raises(SettingsError, match=r"starts from a UNet; got a \w+: set generator\.family=unet, or segmenter"):
        from_denoiser(small(family), 2, 0.1, 0)


def test_the_family_without_a_network_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"generator\.family=moments is no denoiser"):
        build_denoiser(GeneratorSettings(family="moments"), num_classes=2, num_masks=0, size=(16, 16), seed=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 24), ("width", 0), ("heads", 3), ("heads", 0), ("depth", 0), ("patch", 3), ("coefficients", 30)],
)
def test_settings_that_no_network_can_have_are_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=rf"generator\.{name}"):
        GeneratorSettings(**{name: value})

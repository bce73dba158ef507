"""Latent diffusion: images there and back, gradients of the denoiser alone, a folder that diffusers reads by itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmedgen.data import phantoms
from fedmedgen.emission.sampling import emit
from fedmedgen.errors import RunError, SettingsError
from fedmedgen.models import saving
from fedmedgen.models.latent import LatentDenoiser, build_latent
from fedmedgen.privacy.per_patient import make_engine
from fedmedgen.privacy.selfcheck import check_engine
from fedmedgen.settings import AutoencoderSettings, GeneratorSettings
from fedmedgen.training.losses import diffusion_loss
from fedmedgen.training.rows import Rows, diffusion_rows, encode, encoded_rows

TINY = GeneratorSettings(family="latent", channels=(8, 16), attention=(False, True), norm_groups=4, sampler_steps=4)
CODER = AutoencoderSettings(channels=(8, 8, 8), norm_groups=4)
MASKS = ("background", "lung")
FRESH = """
import sys
import numpy as np
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
drawn = pipe(label=["sick", "normal"], num_images=2, seed=3)
assert not any(name == "fedmedgen" or name.startswith("fedmedgen.") for name in sys.modules)
np.savez(sys.argv[2], images=np.stack([np.asarray(image) for image in drawn.images]), masks=drawn.masks)
"""


def small(size: tuple[int, int] = (18, 24), masks: int = 1) -> LatentDenoiser:
    model = build_latent(TINY, CODER, num_classes=2, num_masks=masks, size=size, seed=0)
    with torch.no_grad():
        model.shift.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4]))
        model.scale.copy_(torch.tensor([0.5, 1.5, 2.0, 0.7]))
    return model


def patient(model: LatentDenoiser, images: int, draws: int = 2, masks: bool = True) -> Rows:
    cases = phantoms.draw("chest", images, size=(18, 24), seed=0)
    if not masks:
        cases = [type(case)(**{**vars(case), "mask": None}) for case in cases]
    generator = torch.Generator().manual_seed(0)
    return encoded_rows(diffusion_rows(cases, draws, generator, TINY, 2, MASKS), model.to_input, generator)


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (30, 37), (128, 128)])
def test_images_of_any_size_go_there_and_back(size: tuple[int, int]) -> None:
    model = small(size)
    x = torch.rand(2, 2, *size) * 2 - 1
    latents = model.to_input(x)
    assert tuple(latents.shape[1:]) == model.noise_shape == (4, -(-size[0] // 4), -(-size[1] // 4))
    assert model.to_images(latents).shape == x.shape
    assert model(latents, torch.ones(2), torch.tensor([0, 2])).shape == latents.shape


def test_only_the_denoiser_trains() -> None:
    trained = {name.split(".")[0] for name, weight in small().named_parameters() if weight.requires_grad}
    assert trained == {"unet"}


def test_a_patients_rows_are_her_own_latents_each_with_its_noise() -> None:
    model = small()
    rows = patient(model, 3)
    cases = phantoms.draw("chest", 3, size=(18, 24), seed=0)
    expected = model.to_input(encode(cases, MASKS)).repeat_interleave(2, dim=0)
    torch.testing.assert_close(rows["x"], expected, atol=1e-5, rtol=1e-5)
    assert rows["noise"].shape == rows["x"].shape
    assert rows["weight"].shape == (6, 1, 1, 1)
    assert not torch.equal(rows["noise"][0], rows["noise"][1])


def test_a_case_whose_mask_is_unknown_weighs_nothing() -> None:
    assert not patient(small(), 2, masks=False)["weight"].any()


def test_the_self_check_sees_the_denoiser_alone() -> None:
    model = small()
    patients = [patient(model, 1 + n % 3) for n in range(5)]
    found = check_engine("reference", model, diffusion_loss, lambda count: patients[:count])
    assert found.parameters == sum(weight.numel() for weight in model.unet.parameters())


@pytest.mark.parametrize("engine", ["opacus", "fused"])
def test_the_engines_take_its_gradients_right(engine: str) -> None:
    """Whether they keep patients apart to the last bit depends, on latents of odd sizes, on the processor."""
    model = small()
    patients = [patient(model, 1 + n % 3) for n in range(5)]
    for clip_norm in (1e-3, 1e3):
        found = make_engine(engine, model, diffusion_loss).clipped_sum(patients, clip_norm)
        expected = make_engine("reference", model, diffusion_loss).clipped_sum(patients, clip_norm)
        whole = float(torch.cat([part.flatten() for part in expected]).norm())
        for got, wanted in zip(found, expected, strict=True):
            assert float((got - wanted).norm()) <= 1e-4 * max(float(wanted.norm()), 1e-3 * whole)


def test_emission_decodes_what_is_drawn() -> None:
    model = small().name_classes(["normal", "sick"], MASKS)
    drawn = emit(model, counts=4, settings=TINY, seed=1).cases
    assert drawn[0].image.shape == (1, 18, 24)
    assert all(case.mask is not None and case.mask.shape == (18, 24) for case in drawn)
    again = emit(model, counts=4, settings=TINY, seed=1, batch_size=3).cases
    np.testing.assert_allclose(drawn[3].image, again[3].image, atol=1.5 / 127.5)


def test_channels_that_norm_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"autoencoder\.norm_groups"):
        build_latent(TINY, AutoencoderSettings(channels=(9, 8)), num_classes=2, num_masks=0, size=(16, 16), seed=0)


def test_a_saved_one_is_read_back_whole_and_its_autoencoder_is_missed(tmp_path: Path) -> None:
    model = small().name_classes(["normal", "sick"], MASKS)
    saving.save_generator(model, tmp_path / "generator", card={})
    loaded = saving.load_generator(tmp_path / "generator")
    assert isinstance(loaded, LatentDenoiser)
    assert loaded.config == model.config
    theirs = loaded.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    (tmp_path / "generator" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(RunError, match="no whole autoencoder in generator/vae"):
        saving.load_generator(tmp_path / "generator")


def test_a_saved_one_samples_with_diffusers_alone(tmp_path: Path) -> None:
    from fedmedgen.models.latent_pipeline import LatentRadiographPipeline

    model = small().name_classes(["normal", "sick"], MASKS)
    saving.save_generator(model, tmp_path / "generator", card={})
    (tmp_path / "fresh.py").write_text(FRESH)
    where = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | where
    packages = [path for path in sys.path if "site-packages" in path]  # -S: not this package's own editable install
    code = f"import sys; sys.path += {packages}; sys.argv[1:] = sys.argv[2:]; exec(open('fresh.py').read())"
    command = [sys.executable, "-S", "-c", code, "fresh", str(tmp_path / "generator"), str(tmp_path / "drawn.npz")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = saving._generator_pipeline(model).config.settings
    here = LatentRadiographPipeline(model.unet, model.vae, ["normal", "sick"], MASKS, (18, 24), settings)
    ours = here(label=["sick", "normal"], num_images=2, seed=3)
    with np.load(tmp_path / "drawn.npz") as drawn:
        expected = np.stack([np.asarray(image) for image in ours.images])
        np.testing.assert_allclose(drawn["images"].astype(int), expected.astype(int), atol=1)
        assert drawn["masks"].shape == (4, 18, 24)

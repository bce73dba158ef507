"""What the server learns from public images before any round: an autoencoder, a network taught; each once in a run."""

from pathlib import Path

import pytest
import torch

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.errors import SettingsError
from fedmedgen.federation import local_round
from fedmedgen.models.latent import LatentDenoiser
from fedmedgen.training.rows import encode
from server.autoencoder import FILE, autoencoder_loss, fit_autoencoder
from server.curriculum import PRETRAINED, pretrain
from server.run_store import RunStore
from server.stages import Study, prepared

STUDY = ("study=demo", "smoke=true", "data.size=[16,16]", "segmenter.rounds=0", "autoencoder.steps=30")
CASES = phantoms.draw("chest", 48, size=(16, 16), seed=0, mask_classes=("background", "lung"))


def store(tmp_path: Path, *words: str) -> RunStore:
    return RunStore.create(compose([*STUDY, *words, f"out={tmp_path / 'run'}"]))


def latent(store: RunStore) -> LatentDenoiser:
    denoiser = local_round.build_whole(store.settings)
    assert isinstance(denoiser, LatentDenoiser)
    return denoiser


def test_an_autoencoder_learns_public_images_and_their_latents_have_the_expected_size(tmp_path: Path) -> None:
    run, public = store(tmp_path, "generator=latent"), encode(CASES, ("background", "lung"))
    denoiser = latent(run)

    def loss() -> float:
        with torch.no_grad():
            return float(autoencoder_loss(denoiser.vae, {"x": public}, kl_weight=0.0).mean())

    before = loss()
    fit_autoencoder(run, denoiser, public)
    assert loss() < 0.8 * before
    latents, expected = denoiser.to_input(public), run.settings.generator.sigma_data
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.full((4,), expected), atol=1e-3, rtol=1e-3)
    assert not any(weight.requires_grad for weight in denoiser.vae.parameters())


def test_it_is_fitted_once_in_a_runs_life(tmp_path: Path) -> None:
    run, public = store(tmp_path, "generator=latent", "autoencoder.steps=1"), encode(CASES, ("background", "lung"))
    first, resumed = latent(run), latent(run)
    fit_autoencoder(run, first, public)
    written = (run.folder / FILE).stat().st_mtime_ns
    fit_autoencoder(run, resumed, public[:0])
    assert (run.folder / FILE).stat().st_mtime_ns == written
    theirs = local_round.public_arrays(resumed)
    assert all((theirs[name] == value).all() for name, value in local_round.public_arrays(first).items())


def test_without_public_images_there_is_none(tmp_path: Path) -> None:
    run = store(tmp_path, "generator=latent")
    with pytest.raises(SettingsError, match="needs public images"):
        fit_autoencoder(run, latent(run), torch.zeros(0, 2, 16, 16))


def test_the_base_of_adapters_is_the_network_as_it_was_taught(tmp_path: Path) -> None:
    run = store(tmp_path, "generator.trainable=lora", "prior.steps=1", "generator.rank=1")
    taught = local_round.build_whole(run.settings)
    pretrain(run, taught, CASES)
    assert (run.folder / PRETRAINED).is_file()
    base = local_round.public_arrays(prepared(Study(run), [], None))
    whole = local_round.trainable_arrays(taught)
    assert base
    for name, value in base.items():
        assert (whole[name.replace(".base.", ".")] == value).all()

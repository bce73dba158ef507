"""Saved models: whole, readable by this package, and usable where this package isn't installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedmedgen.errors import RunError
from fedmedgen.models import samplers, saving
from fedmedgen.models.denoiser import Denoiser, build_denoiser
from fedmedgen.models.segmenter import from_denoiser
from fedmedgen.settings import GeneratorSettings

TINY = GeneratorSettings(unshuffle=2, channels=(8, 16), attention=(False, True), norm_groups=4, sampler_steps=4)
FRESH = """
import sys
import numpy as np
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
drawn = pipe(label=["sick", "normal"], num_images=2, seed=3)
assert not any(name == "fedmedgen" or name.startswith("fedmedgen.") for name in sys.modules)
try:
    import fedmedgen
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package was importable")
masks = DiffusionPipeline.from_pretrained(sys.argv[2], trust_remote_code=True)(drawn.images)
np.savez(sys.argv[3], images=np.stack([np.asarray(image) for image in drawn.images]), masks=drawn.masks,
         labels=drawn.labels, segmented=masks)
"""


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    model = build_denoiser(TINY, num_classes=2, num_masks=1, size=(16, 24), seed=0)
    return model.name_classes(["normal", "sick"], ["background", "lung"])


def test_a_saved_generator_comes_back_the_same(denoiser: Denoiser, tmp_path: Path) -> None:
    saving.save_generator(denoiser, tmp_path / "generator", card={"epsilon": 8.0})
    loaded = saving.load_generator(tmp_path / "generator")
    assert loaded.config == denoiser.config
    theirs = loaded.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in denoiser.state_dict().items())


def test_a_saved_segmenter_comes_back_the_same(denoiser: Denoiser, tmp_path: Path) -> None:
    segmenter = from_denoiser(denoiser, 2, 0.1, 0)
    saving.save_segmenter(segmenter, tmp_path / "segmenter", card={})
    loaded = saving.load_segmenter(tmp_path / "segmenter")
    x = torch.randn(1, 1, 16, 24)
    assert loaded.config == segmenter.config
    torch.testing.assert_close(loaded(x), segmenter(x))


def test_weights_are_safetensors_and_nothing_is_pickled(denoiser: Denoiser, tmp_path: Path) -> None:
    saving.save_generator(denoiser, tmp_path, card={})
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert names == {"README.md", "model_index.json", "pipeline.py", "unet/config.json", weights}


def test_the_card_states_epsilon_and_the_facts_given(denoiser: Denoiser, tmp_path: Path) -> None:
    saving.save_generator(denoiser, tmp_path, card={"epsilon": 7.5, "data_kinds": ["chest"], "unit": None})
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    for line in ("- epsilon: 7.5", "- data kinds: chest", "- unit: none", "Not a medical device"):
        assert line in card


def test_no_path_of_this_machine_is_saved(denoiser: Denoiser, tmp_path: Path) -> None:
    saving.save_generator(denoiser, tmp_path / "a", card={})
    saving.save_generator(saving.load_generator(tmp_path / "a"), tmp_path / "b", card={})
    for name in ("model_index.json", "unet/config.json"):
        assert str(tmp_path) not in (tmp_path / "b" / name).read_text()


@pytest.mark.parametrize(
    "missing", ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
)
def test_a_folder_that_is_not_whole_is_refused(denoiser: Denoiser, tmp_path: Path, missing: str) -> None:
    saving.save_generator(denoiser, tmp_path / "generator", card={})
    (tmp_path / "generator" / missing).unlink()
    with pytest.raises(RunError, match="no whole saved model in generator/"):
        saving.load_generator(tmp_path / "generator")


def test_a_cut_weights_file_is_refused(denoiser: Denoiser, tmp_path: Path) -> None:
    saving.save_generator(denoiser, tmp_path / "generator", card={})
    weights = tmp_path / "generator" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match="no whole saved model in generator/"):
        saving.load_generator(tmp_path / "generator")


@pytest.mark.parametrize("lost", ["settings", "mask_classes", "size", "unet"])
def test_an_index_that_lacks_a_part_is_refused(denoiser: Denoiser, tmp_path: Path, lost: str) -> None:
    saving.save_generator(denoiser, tmp_path / "generator", card={})
    saving.save_segmenter(from_denoiser(denoiser, 2, 0.1, 0), tmp_path / "segmenter", card={})
    for name, load in {"generator": saving.load_generator, "segmenter": saving.load_segmenter}.items():
        path = tmp_path / name / "model_index.json"
        index = json.loads(path.read_text())
        del index[lost]
        path.write_text(json.dumps(index))
        with pytest.raises(RunError, match=f"no whole saved model in {name}/"):
            load(tmp_path / name)


def test_a_segmenter_is_not_taken_for_a_generator(denoiser: Denoiser, tmp_path: Path) -> None:
    saving.save_segmenter(from_denoiser(denoiser, 2, 0.1, 0), tmp_path / "segmenter", card={})
    with pytest.raises(RunError, match="must hold a RadiographPipeline"):
        saving.load_generator(tmp_path / "segmenter")


def test_a_saved_generator_samples_with_diffusers_alone(denoiser: Denoiser, tmp_path: Path) -> None:
    import numpy as np

    saving.save_generator(denoiser, tmp_path / "generator", card={})
    saving.save_segmenter(from_denoiser(denoiser, 2, 0.1, 0), tmp_path / "segmenter", card={})
    (tmp_path / "fresh.py").write_text(FRESH)
    where = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | where
    out = tmp_path / "drawn.npz"
    # -S leaves out site-packages' .pth files and so an editable install of this package
    code = (
        f"import sys; sys.path += {[path for path in sys.path if 'site-packages' in path]}; sys.argv[1:] = sys.argv[2:]"
    )
    command = [sys.executable, "-S", "-c", f"{code}; exec(open({str(tmp_path / 'fresh.py')!r}).read())", "fresh"]
    folders = [str(tmp_path / "generator"), str(tmp_path / "segmenter"), str(out)]
    done = subprocess.run([*command, *folders], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(out, allow_pickle=False) as drawn:
        assert drawn["images"].shape == drawn["masks"].shape == drawn["segmented"].shape == (4, 16, 24)
        assert drawn["labels"].tolist() == ["sick", "sick", "normal", "normal"]
        noise = torch.randn((4, 2, 16, 24), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            ours = samplers.heun(
                samplers.guided(denoiser, torch.tensor([1, 1, 0, 0]), 1.0), noise, samplers.karras_sigmas(4)
            )
        theirs = torch.from_numpy(drawn["images"]).float() / 127.5 - 1
        torch.testing.assert_close(theirs, ours[:, 0].clamp(-1, 1), atol=1.5 / 127.5, rtol=0)


def test_the_pipeline_says_which_labels_it_knows(denoiser: Denoiser, tmp_path: Path) -> None:
    from fedmedgen.models.pipeline import RadiographPipeline

    saving.save_generator(denoiser, tmp_path, card={})
    kept = json.loads((tmp_path / "model_index.json").read_text())["settings"]
    pipe = RadiographPipeline(denoiser.unet, ["normal", "sick"], ["background", "lung"], [16, 24], kept)
    with pytest.raises(ValueError, match=r"label must be of \['normal', 'sick'\]; got \['ill'\]"):
        pipe(label="ill")
    with pytest.raises(ValueError, match="options are steps and guidance"):
        pipe(label="sick", strength=2)

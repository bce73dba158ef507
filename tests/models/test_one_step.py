"""Generators that draw in one step from a code: a VAE's decoder and a GAN's."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmedgen.data import phantoms
from fedmedgen.emission.sampling import emit
from fedmedgen.errors import SettingsError
from fedmedgen.models import saving
from fedmedgen.models.code_networks import coarsest
from fedmedgen.models.one_step import OneStepGenerator, build_one_step
from fedmedgen.privacy.selfcheck import check_engine
from fedmedgen.settings import GeneratorSettings
from fedmedgen.training.adversarial import fake_loss, pair_rows, real_loss
from fedmedgen.training.losses import elbo_loss
from fedmedgen.training.rows import coded_rows

FAMILIES = {
    name: GeneratorSettings(family=name, width=16, norm_groups=2, code=8, label_dropout=0.2) for name in ("vae", "gan")
}
NAMES = (["normal", "sick"], ["background", "lung"])
LOSSES = {"vae": (elbo_loss,), "gan": (real_loss, fake_loss)}
FRESH = """
import sys
import numpy as np
from diffusers import DiffusionPipeline
for folder in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    drawn = pipe(label=["sick", "normal"], num_images=2, seed=3)
    np.savez(folder + ".npz", images=np.stack([np.asarray(image) for image in drawn.images]), masks=drawn.masks,
             labels=drawn.labels)
try:
    import fedmedgen
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package was importable")
"""


def small(family: str, size: tuple[int, int] = (16, 24), masks: int = 1, seed: int = 0) -> OneStepGenerator:
    return build_one_step(FAMILIES[family], num_classes=2, num_masks=masks, size=size, seed=seed)


def patients(family: str, count: int) -> list[dict[str, Tensor]]:
    """Rows of patients of one to three phantoms, some of them without a mask."""
    cases = phantoms.draw("chest", 3 * count, size=(16, 24), seed=0)
    cases = [dataclasses.replace(case, label=index % 2) for index, case in enumerate(cases)]
    cases[1] = dataclasses.replace(cases[1], mask=None)
    rows = coded_rows if family == "vae" else pair_rows
    draw = partial(rows, settings=FAMILIES[family], num_classes=2, mask_classes=NAMES[1])
    generator = torch.Generator().manual_seed(0)
    return [draw(cases[3 * n : 3 * n + 1 + n % 3], 2, generator) for n in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (30, 37), (64, 64)])
def test_every_size_is_drawn_and_read(family: str, size: tuple[int, int]) -> None:
    model, labels = small(family, size), torch.tensor([0, 2])
    drawn = model.draw(labels, [1, 2])
    assert drawn.shape == (2, 2, *size)
    assert float(drawn.abs().max()) <= 1
    read = model.reader(drawn, labels)
    assert read.shape == (2,) if family == "gan" else read[0].shape == (2, 8)
    assert 3 <= min(coarsest(size)) <= 5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_depend_on_the_seed_alone(family: str) -> None:
    before = torch.random.get_rng_state()
    first, same, other = (list(small(family, seed=seed).parameters()) for seed in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_changes_what_is_drawn_and_what_is_read(family: str) -> None:
    model = small(family)
    one, other = model.draw(torch.tensor([0, 1]), [7, 7])
    assert not torch.allclose(one, other)
    both, labels = torch.stack([one, one]), torch.tensor([0, 1])
    read = model.reader(both, labels)
    read = read if family == "gan" else read[0]
    assert not torch.allclose(read[0], read[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_layer_mixes_the_images_of_a_batch(family: str) -> None:
    kinds = {type(module) for module in small(family).modules() if list(module.parameters(recurse=False))}
    assert kinds - {OneStepGenerator} == {nn.Linear, nn.Conv2d, nn.GroupNorm, nn.Embedding}


def test_of_a_gan_the_critic_alone_trains_at_sites_and_of_a_vae_all() -> None:
    frozen = {family: {name.partition(".")[0] for name, value in small(family).named_parameters()
                       if not value.requires_grad} for family in FAMILIES}  # fmt: skip
    assert frozen == {"vae": set(), "gan": {"decoder", "class_shares"}}


@pytest.mark.parametrize("engine", ["reference", "opacus"])
@pytest.mark.parametrize("loss", [elbo_loss, real_loss, fake_loss])
def test_both_engines_equal_one_row_at_a_time(engine: str, loss: Callable[..., Tensor]) -> None:
    family = "vae" if loss is elbo_loss else "gan"
    model = small(family)
    result = check_engine(engine, model, loss, partial(patients, family))
    assert 0 < result.largest_error < 1e-5
    assert result.parameters == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_case_depends_on_seed_class_and_number_alone(family: str) -> None:
    model, settings = small(family).name_classes(*NAMES), FAMILIES[family]
    few = emit(model, counts={"sick": 2}, settings=settings, batch_size=1, seed=5)
    many = emit(model, counts={"normal": 3, "sick": 4}, settings=settings, batch_size=5, seed=5)
    for one, same in zip(few.cases, [case for case in many.cases if case.label == 1], strict=False):
        np.testing.assert_allclose(one.image, same.image, atol=1.5 / 127.5)  # a grey level: batches round differently
        assert one.mask is not None
        assert one.mask.shape == (16, 24)
    assert np.abs(few.cases[0].image - few.cases[1].image).max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_generator_comes_back_the_same(family: str, tmp_path: Path) -> None:
    model = small(family).name_classes(*NAMES)
    saving.save_generator(model, tmp_path / "a", card={})
    loaded = saving.load_generator(tmp_path / "a")
    assert isinstance(loaded, OneStepGenerator)
    assert (loaded.config, loaded.adversarial) == (model.config, model.adversarial)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    words = (tmp_path / "a" / "README.md").read_text()
    assert ("adversarial" if family == "gan" else "autoencoder") in words


def test_saved_generators_draw_with_diffusers_alone(tmp_path: Path) -> None:
    models = {family: small(family).name_classes(*NAMES) for family in FAMILIES}
    for family, model in models.items():
        saving.save_generator(model, tmp_path / family, card={})
    where = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | where
    # -S leaves out site-packages' .pth files and so an editable install of this package
    code = f"import sys; sys.path += {[path for path in sys.path if 'site-packages' in path]}\n{FRESH}"
    command = [sys.executable, "-S", "-c", code, *(str(tmp_path / family) for family in FAMILIES)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seeds = torch.randint(2**62, (4,), generator=torch.Generator().manual_seed(3)).tolist()
    for family, model in models.items():
        ours = model.draw(torch.tensor([1, 1, 0, 0]), seeds)
        with np.load(tmp_path / f"{family}.npz", allow_pickle=False) as drawn:
            assert drawn["labels"].tolist() == ["sick", "sick", "normal", "normal"]
            assert drawn["masks"].shape == (4, 16, 24)
            theirs = torch.from_numpy(drawn["images"]).float() / 127.5 - 1
        torch.testing.assert_close(theirs, ours[:, 0], atol=1.5 / 127.5, rtol=0)


def test_groups_that_do_not_fit_the_width_are_refused_by_name() -> None:
    settings = dataclasses.replace(FAMILIES["vae"], norm_groups=3)
    with pytest.raises(SettingsError, match=r"generator\.norm_groups must divide half of generator\.width, 8; got 3"):
        build_one_step(settings, num_classes=2, num_masks=0, size=(16, 16), seed=0)

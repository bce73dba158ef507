"""The cheap generator: what it draws, what it depends on, and that it samples without this package."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmedgen.emission import emit
from fedmedgen.errors import RunError, SettingsError
from fedmedgen.models import basis as bases
from fedmedgen.models import moments, moments_pipeline, pipeline, refinement, saving
from fedmedgen.models.coefficient_sampler import CoefficientSampler, LearnedFeatures
from fedmedgen.models.moments import MomentsGenerator, Pool
from fedmedgen.settings import GeneratorSettings

D = 3
NAMES = {"classes": ("normal", "sick"), "mask_classes": ("background", "lung")}
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
np.savez(sys.argv[2], images=np.stack([np.asarray(image) for image in drawn.images]), masks=drawn.masks,
         labels=drawn.labels)
"""


def public() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 2 * 8 * 12, generator=generator) * torch.arange(1, 193).float() ** -1.0
    return 0.1 * rows.reshape(40, 2, 8, 12)


BASIS = bases.pca(public(), D)
AS_IT_IS = torch.tensor([[0.0, 1.0]])


def law() -> SimpleNamespace:
    """Means and covariances ``[2, 3]``, ``[2, 3, 3]`` far apart; the second covariance is singular."""
    mixing = torch.tensor([[[0.3, 0, 0], [0.2, 0.2, 0], [0, 0.1, 0.4]], [[0.3, 0.3, 0], [0.3, 0.3, 0], [0, 0, 0.1]]])
    return SimpleNamespace(means=torch.tensor([[1.0, 0, 0], [-1.0, 0.5, 0]]), covariances=mixing @ mixing.mT)


def gaussian(residuals: Tensor | None = None) -> MomentsGenerator:
    return moments.from_moments(BASIS, law(), pool=Pool(residuals=residuals, exposures=AS_IT_IS), **NAMES)


def sharpened(residuals: Tensor | None = None) -> MomentsGenerator:
    """The Gaussian one, of whose candidates that is kept which features of networks without training prefer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        features = LearnedFeatures(num_classes=2, networks=2, dimension=D).eval()
        features.directions.copy_(torch.randn(features.directions.shape))
    return refinement.refined(gaussian(residuals), features, law(), candidates=4)


def embed(z: Tensor) -> Tensor:
    frequencies = torch.randn(100, D, generator=torch.Generator().manual_seed(5))
    angle = z @ frequencies.T
    return torch.cat([angle.cos(), angle.sin()], dim=1) / 10


@pytest.fixture(scope="module")
def fitted() -> MomentsGenerator:
    network = moments.fit_network(embedding(), embed, dimension=D, seed=0, steps=400)
    return moments.from_network(
        BASIS, network, pool=Pool(residuals=BASIS.residual(public())[:5], exposures=AS_IT_IS), **NAMES
    )


def embedding() -> Tensor:
    return torch.stack([embed(z).mean(dim=0) for z in samples()])


def samples() -> Tensor:
    """Coefficients ``[2, 4000, 3]`` that follow the law."""
    generator = torch.Generator().manual_seed(2)
    factors = torch.linalg.cholesky(law().covariances + 1e-6 * torch.eye(D))
    return law().means[:, None] + torch.randn(2, 4000, D, generator=generator) @ factors.mT


def test_the_coefficients_of_what_is_drawn_have_the_means_and_covariances_given() -> None:
    for label in (0, 1):
        x = gaussian().draw(torch.full((4000,), label), range(4000))
        z = BASIS.coefficients(x)
        torch.testing.assert_close(z.mean(dim=0), law().means[label], atol=0.03, rtol=0)
        torch.testing.assert_close(torch.cov(z.T), law().covariances[label], atol=0.03, rtol=0)
        assert float(BASIS.residual(x).abs().max()) < 1e-5


def test_a_public_residual_is_added_to_each_image_and_all_of_the_pool_come_up() -> None:
    pool = BASIS.residual(public())[:5]
    x = gaussian(pool).draw(torch.zeros(100).long(), range(100))
    distance = torch.cdist(BASIS.residual(x).flatten(1), pool.flatten(1))
    assert float(distance.min(dim=1).values.max()) < 1e-3
    assert distance.argmin(dim=1).unique().tolist() == [0, 1, 2, 3, 4]


def test_with_codes_an_image_has_the_residual_and_the_masks_of_the_nearest_public_one() -> None:
    pool, known = public(), BASIS.coefficients(public())
    rest = BASIS.residual(pool)
    rest[:, 1:] = pool[:, 1:]
    public_ones = Pool(residuals=rest, codes=known, exposures=AS_IT_IS)
    x = moments.from_moments(BASIS, law(), pool=public_ones, **NAMES).draw(torch.zeros(50).long(), range(50))
    plain = gaussian().draw(torch.zeros(50).long(), range(50))
    nearest = (BASIS.images(known)[None] - plain[:, None]).flatten(2).square().sum(dim=2).argmin(dim=1)
    assert len(nearest.unique()) > 3
    torch.testing.assert_close(x[:, 1:], pool[nearest][:, 1:])
    torch.testing.assert_close(x[:, :1], (plain + BASIS.residual(pool)[nearest])[:, :1].clamp(-1, 1))


def test_each_image_has_one_of_the_public_exposures_and_all_of_them_come_up() -> None:
    exposures = torch.tensor([[0.1, 0.02], [-0.3, 0.05], [0.4, 0.01]])
    labels, seeds = torch.zeros(60).long(), range(60)
    plain = gaussian().draw(labels, seeds)
    x = moments.from_moments(BASIS, law(), pool=Pool(exposures=exposures), **NAMES).draw(labels, seeds)
    each = exposures[:, 0, None, None, None, None] + exposures[:, 1, None, None, None, None] * plain[:, :1]
    distance = (x[:, :1] - each).abs().amax(dim=(2, 3, 4))
    assert float(distance.min(dim=0).values.max()) < 1e-5
    assert distance.argmin(dim=0).unique().tolist() == [0, 1, 2]
    assert torch.equal(x[:, 1:], plain[:, 1:])


def test_what_is_drawn_stays_within_the_range_of_pixels() -> None:
    wide = SimpleNamespace(means=law().means * 100, covariances=law().covariances)
    x = moments.from_moments(BASIS, wide, **NAMES).draw(torch.tensor([0, 1]), [0, 1])
    assert float(x.abs().max()) == 1


def test_an_image_depends_on_its_own_label_and_seed_alone(fitted: MomentsGenerator) -> None:
    for generator in (gaussian(BASIS.residual(public())), fitted):
        whole = generator.draw(torch.tensor([0, 1, 1, 0]), [7, 8, 9, 7])
        part = generator.draw(torch.tensor([1, 0]), [9, 7])
        torch.testing.assert_close(part, whole[[2, 3]])
        torch.testing.assert_close(whole[0], whole[3])
        assert float((whole[1] - whole[2]).abs().max()) > 0.01


def test_a_set_does_not_depend_on_the_batch_size_nor_on_other_classes(fitted: MomentsGenerator) -> None:
    for generator in (gaussian(), fitted):
        cases = emit(generator, counts={"normal": 1, "sick": 3}, settings=GeneratorSettings(), batch_size=4, seed=0)
        more = emit(generator, counts={"normal": 4, "sick": 3}, settings=GeneratorSettings(), batch_size=2, seed=0)
        assert [case.label for case in cases] == [0, 1, 1, 1]
        np.testing.assert_allclose(cases.images()[1:], more.images()[4:], atol=1.1 / 127.5)
        assert all(case.mask is not None and case.mask.shape == (8, 12) for case in cases)


def test_a_network_is_fitted_to_the_mean_embedding_of_each_class(fitted: MomentsGenerator) -> None:
    noise = torch.randn(4000, D, generator=torch.Generator().manual_seed(9))
    for label in (0, 1):
        z = fitted.sampler.coefficients(torch.full((4000,), label), noise)
        gap = torch.dist(embed(z).mean(dim=0), embedding()[label])
        assert gap < 0.06 < 0.3 * torch.dist(*embedding())
        torch.testing.assert_close(z.mean(dim=0), law().means[label], atol=0.1, rtol=0)


def test_the_same_seed_fits_the_same_network_and_leaves_the_global_random_state() -> None:
    before = torch.random.get_rng_state()
    fit = partial(moments.fit_network, embedding(), embed, dimension=D, steps=5)
    first, same, other = ([*fit(seed=seed).parameters()] for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_study_without_classes_draws_from_the_one_law_there_is() -> None:
    one = SimpleNamespace(means=law().means[:1], covariances=law().covariances[:1])
    generator = moments.from_moments(bases.pca(public()[:, :1], D), one, classes=())
    cases = emit(generator, counts=2, settings=GeneratorSettings(), seed=0)
    assert generator.num_classes == 0
    assert [(case.label, case.mask) for case in cases] == [(None, None)] * 2


def test_names_must_fit_the_law_and_the_channels() -> None:
    assert gaussian().name_classes(["a", "b"], ["background", "tooth"]).config.classes == ("a", "b")
    for classes, masks in ((["a"], ["background", "tooth"]), (["a", "b"], [])):
        with pytest.raises(SettingsError, match="2 classes and 2 channels"):
            gaussian().name_classes(classes, masks)


def test_a_saved_generator_comes_back_the_same(fitted: MomentsGenerator, tmp_path: Path) -> None:
    plain = gaussian(BASIS.residual(public()))
    each = {"gaussian": plain, "network": fitted, "bare": gaussian(), "refined": sharpened()}
    for name, generator in each.items():
        saving.save_generator(generator, tmp_path / name, card={"epsilon": 1.0})
        loaded = saving.load_generator(tmp_path / name)
        assert isinstance(loaded, MomentsGenerator)
        assert loaded.config == generator.config
        labels, seeds = torch.tensor([0, 1, 1]), [1, 2, 3]
        torch.testing.assert_close(loaded.draw(labels, seeds), generator.draw(labels, seeds))
        saving.save_generator(loaded, tmp_path / "again", card={})
        assert str(tmp_path) not in (tmp_path / "again" / "model_index.json").read_text()
        assert str(tmp_path) not in (tmp_path / "again" / "sampler" / "config.json").read_text()


def test_nothing_is_pickled_and_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    saving.save_generator(gaussian(), tmp_path, card={})
    weights = "sampler/diffusion_pytorch_model.safetensors"
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    own = {"README.md", "model_index.json", "pipeline.py", "sampler/config.json", "sampler/coefficient_sampler.py"}
    assert names == own | {weights}
    (tmp_path / weights).write_bytes((tmp_path / weights).read_bytes()[:200])
    with pytest.raises(RunError, match="no whole saved model"):
        saving.load_generator(tmp_path)


@pytest.mark.parametrize("make", [gaussian, sharpened])
def test_a_saved_generator_samples_with_diffusers_alone(
    tmp_path: Path, make: Callable[[Tensor], MomentsGenerator]
) -> None:
    generator = make(BASIS.residual(public()))
    saving.save_generator(generator, tmp_path / "generator", card={})
    (tmp_path / "fresh.py").write_text(FRESH)
    where = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | where
    # -S leaves out site-packages' .pth files and so an editable install of this package
    code = (
        f"import sys; sys.path += {[path for path in sys.path if 'site-packages' in path]}; sys.argv[1:] = sys.argv[2:]"
    )
    command = [sys.executable, "-S", "-c", f"{code}; exec(open({str(tmp_path / 'fresh.py')!r}).read())", "fresh"]
    folders = [str(tmp_path / "generator"), str(tmp_path / "drawn.npz")]
    done = subprocess.run([*command, *folders], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seeds = torch.randint(2**62, (4,), generator=torch.Generator().manual_seed(3)).tolist()
    images, masks = pipeline.to_pixels(generator.draw(torch.tensor([1, 1, 0, 0]), seeds))
    with np.load(tmp_path / "drawn.npz", allow_pickle=False) as drawn:
        assert drawn["labels"].tolist() == ["sick", "sick", "normal", "normal"]
        np.testing.assert_allclose(drawn["images"].astype(int), images.astype(int), atol=1)
        assert (drawn["masks"] == masks).mean() > 0.99


def test_the_pipeline_turns_draws_into_pixels_as_that_of_a_denoiser_does() -> None:
    x = torch.randn(6, 3, 8, 12, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    pipe = moments_pipeline.MomentsPipeline(gaussian().sampler, ["a"], ["background", "p", "q"], [8, 12])
    pipe.sampler.draw = lambda *_: x
    drawn, (images, masks) = pipe(label="a", num_images=6, seed=0), pipeline.to_pixels(x)
    assert np.array_equal(np.stack([np.asarray(image) for image in drawn.images]), images)
    assert masks is not None
    assert np.array_equal(drawn.masks, masks)
    with pytest.raises(ValueError, match=r"label must be of \['a'\]; got \['b'\]"):
        pipe(label="b")


def test_a_masks_thin_outlines_go_and_its_shape_and_the_image_stay() -> None:
    sampler = CoefficientSampler(shape=(2, 64, 64), dimension=1, num_classes=1)
    with torch.no_grad():
        sampler.mean[1] = -0.5
        sampler.mean[1, 16:48, 16:48] = 0.5
        sampler.mean[1, 8, 8:56] = 0.5  # a line of one pixel around it, as rings are
        sampler.mean[0, 8, 8:56] = 0.5
        sampler.exposures[:] = torch.tensor([0.0, 1.0])
    image, mask = sampler.draw(torch.zeros(1, dtype=torch.long), [1])[0]
    torch.testing.assert_close(image, sampler.mean[0])
    assert not (mask[:12] > 0).any()
    square = sampler.mean[1].clone()
    square[:12] = -0.5
    assert ((mask > 0) != (square > 0)).sum() <= 4 * 3  # its corners are rounded


def test_of_several_mask_classes_the_highest_wins_however_high_they_are() -> None:
    """As with statistics.mask_weight above 1, whose channels reach beyond what is kept of an image."""
    sampler = CoefficientSampler(shape=(4, 8, 8), dimension=1, num_classes=1)
    with torch.no_grad():
        sampler.mean[1:] = torch.tensor([1.5, 1.2, -3.0])[:, None, None]
        sampler.mean[2, :, 4:] = 2.5
        sampler.mean[1:3, 7] = -2.0
        sampler.exposures[:] = torch.tensor([0.0, 1.0])
    x = sampler.draw(torch.zeros(1, dtype=torch.long), [1])
    _, masks = pipeline.to_pixels(x)
    assert masks is not None
    assert (masks[0, :7, :4] == 1).all()
    assert (masks[0, :7, 4:] == 2).all()
    assert not masks[0, 7].any()
    assert float(x.abs().max()) == 1

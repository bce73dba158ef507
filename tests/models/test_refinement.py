"""A generator made sharper: features that networks learned, the discriminant of their moments, the draw kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from fedmedgen.models import basis as bases
from fedmedgen.models import moments, refinement
from fedmedgen.models.coefficient_sampler import LearnedFeatures, classifier
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.privacy.statistics import Moments

D, FEATURES, CANDIDATES = 3, 4, 6
SIZES = {"num_classes": 2, "networks": 2}
AS_IT_IS = torch.tensor([[0.0, 0.3]])


def cheap() -> MomentsGenerator:
    """Two classes of 12 x 16 images with a lung mask, which overlap."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 2 * 12 * 16, generator=generator) * torch.arange(1, 385).float() ** -1.0
    public = rows.reshape(40, 2, 12, 16)
    means = torch.tensor([[0.5, 0, 0.2], [-0.5, 0.3, 0]])
    law = Moments(torch.ones(2) / 2, means, 0.2 * torch.eye(D).expand(2, D, D))
    names = {"classes": ("normal", "sick"), "mask_classes": ("background", "lung")}
    return moments.from_moments(bases.pca(public, D), law, pool=moments.Pool(exposures=AS_IT_IS), **names)


CHEAP = cheap()


def networks() -> list[torch.nn.Sequential]:
    """As they are before any training: two of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return [classifier(2).eval() for _ in range(2)]


def samples(label: int, count: int = 300) -> Tensor:
    return bases.standardised(CHEAP.draw(torch.full((count,), label), range(count)))[0][:, :1]


@pytest.fixture(scope="module")
def features() -> LearnedFeatures:
    return refinement.learned_features(networks(), torch.cat([samples(0), samples(1)]), dimension=FEATURES)


@pytest.fixture(scope="module")
def measured(features: LearnedFeatures) -> Moments:
    """The moments of the features of the generator's own classes."""
    seen = [features(samples(label)).double() for label in (0, 1)]
    return Moments(torch.ones(2) / 2, torch.stack([z.mean(dim=0) for z in seen]), torch.stack([cov(z) for z in seen]))


def cov(z: Tensor) -> Tensor:
    return torch.cov(z.T, correction=0)


def refined(features: LearnedFeatures, measured: Moments, candidates: int = CANDIDATES) -> MomentsGenerator:
    return refinement.refined(CHEAP, features, measured, candidates=candidates)


def test_learned_features_are_centred_on_their_samples_with_a_mean_square_length_of_one(
    features: LearnedFeatures,
) -> None:
    z = features(torch.cat([samples(0), samples(1)]))
    assert z.shape == (600, FEATURES)
    assert float(z.square().sum(dim=1).mean()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(FEATURES), atol=1e-4, rtol=0)
    deviations = z.std(dim=0)
    assert torch.equal(deviations.argsort(descending=True), torch.arange(FEATURES))


def test_features_do_not_depend_on_exposure_nor_on_what_else_is_in_the_batch(features: LearnedFeatures) -> None:
    x = samples(0, 8)
    torch.testing.assert_close(features(0.2 * x - 0.4), features(x), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(features(x)[3:4], features(x[3:4]), atol=1e-5, rtol=1e-4)


def test_features_come_back_bitwise_from_the_arrays_that_are_sent(features: LearnedFeatures) -> None:
    arrays = refinement.to_arrays(features)
    again = refinement.from_arrays(arrays, **SIZES)
    x = samples(1, 20)
    assert torch.equal(again(x), features(x))
    assert {str(value.dtype) for value in arrays.values()} == {"float32"}
    shapes = {name: value.shape for name, value in arrays.items()}
    assert refinement.shapes(**SIZES, dimension=FEATURES) == shapes


def test_the_discriminant_is_that_of_a_shrunken_pooled_covariance() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 500)
    x = draw.normal(size=(1500, D)) @ draw.normal(size=(D, D)) + draw.normal(size=(3, D))[y]
    each = [torch.from_numpy(x[y == label]) for label in range(3)]
    found = Moments(torch.ones(3) / 3, torch.stack([z.mean(dim=0) for z in each]), torch.stack([*map(cov, each)]))
    weights, offsets = refinement.discriminant(found)
    factor = 1 + refinement.RIDGE
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=refinement.RIDGE / factor, priors=np.ones(3) / 3)
    known.fit(x, y)
    np.testing.assert_allclose(weights.numpy() * factor, known.coef_, rtol=1e-6)
    np.testing.assert_allclose(offsets.numpy() * factor, known.intercept_ - np.log(1 / 3), rtol=1e-6)


def test_the_discriminant_tells_gaussians_far_apart_from_each_other() -> None:
    means = torch.tensor([[3.0, 0, 1], [-3.0, 1, 0]], dtype=torch.float64)
    weights, offsets = refinement.discriminant(Moments(torch.ones(2) / 2, means, torch.eye(D).double().expand(2, D, D)))
    noise = torch.randn(1000, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for label in (0, 1):
        scores = (means[label] + noise) @ weights.T + offsets
        assert float((scores.argmax(dim=1) == label).double().mean()) > 0.99


def test_a_kept_image_depends_on_its_own_label_and_seed_alone(features: LearnedFeatures, measured: Moments) -> None:
    generator = refined(features, measured)
    labels, seeds = torch.arange(24) % 2, [*range(7, 30), 7]
    whole = generator.draw(labels, seeds)
    for rows in ([5], [23, 4], [0, 1, 2]):
        part = generator.draw(labels[rows], [seeds[row] for row in rows])
        torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)


def test_one_candidate_is_what_the_generator_drew_before(features: LearnedFeatures, measured: Moments) -> None:
    labels, seeds = torch.arange(10) % 2, range(10)
    plain = CHEAP.draw(labels, seeds)
    assert torch.equal(refined(features, measured, candidates=1).draw(labels, seeds), plain)
    assert not torch.equal(refined(features, measured).draw(labels, seeds), plain)


def scores(features: LearnedFeatures, measured: Moments, x: Tensor) -> Tensor:
    """How likely each class is, by hand."""
    weights, offsets = refinement.discriminant(measured)
    return (features(x[:, :1]).double() @ weights.T + offsets).log_softmax(dim=1)


def test_more_candidates_make_every_label_likelier(features: LearnedFeatures, measured: Moments) -> None:
    for label in (0, 1):
        labels = torch.full((80,), label)
        drawn = [refined(features, measured, candidates=count).draw(labels, range(80)) for count in (1, 3, 9)]
        means = [float(scores(features, measured, x)[:, label].mean()) for x in drawn]
        assert means[0] + 0.02 < means[1] < means[2] - 0.005


def test_the_image_that_is_kept_keeps_its_own_mask(features: LearnedFeatures, measured: Moments) -> None:
    generator = refined(features, measured)
    kept, places = generator.draw(torch.tensor([0, 1]).repeat(10), range(20)), set()
    for seed, image in enumerate(kept):
        label, own = seed % 2, [torch.Generator().manual_seed(seed)]
        options = torch.cat([generator.sampler._drawn(torch.tensor([label]), own) for _ in range(CANDIDATES)])
        place = int(scores(features, measured, options)[:, label].argmax())
        torch.testing.assert_close(image, options[place], atol=1e-6, rtol=0)
        others = [torch.dist(image[1], option[1]) for number, option in enumerate(options) if number != place]
        assert min(others) > 1e-3
        places.add(place)
    assert len(places) > 2


def test_a_second_refinement_replaces_the_first(features: LearnedFeatures, measured: Moments) -> None:
    fewer = LearnedFeatures(num_classes=2, networks=2, dimension=2)
    first = refinement.refined(
        CHEAP, fewer, Moments(measured.shares, measured.means[:, :2], measured.covariances[:, :2, :2]), candidates=2
    )
    again = refinement.refined(first, features, measured, candidates=CANDIDATES)
    labels, seeds = torch.arange(6) % 2, range(6)
    assert torch.equal(again.draw(labels, seeds), refined(features, measured).draw(labels, seeds))
    assert json.loads(again.sampler.to_json_string())["features"] == FEATURES
    assert again.config == replace(CHEAP.config)

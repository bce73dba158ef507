"""The features that evaluation and audits share."""

import numpy as np
import torch

from fedmedgen.models.features import NUM_FEATURES, Features, extract


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 1, 24, 20)).astype(np.float32)


def test_each_image_gives_112_finite_numbers() -> None:
    found = extract(images(3))
    assert found.shape == (3, NUM_FEATURES) == (3, 112)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_features_of_an_image_do_not_depend_on_the_others() -> None:
    network = Features()
    alone, together = network(images(3)[:1]), network(images(3))[:1]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_training_mode_changes_nothing_and_no_weight_learns() -> None:
    network = Features().train()
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


def test_no_images_give_no_features() -> None:
    assert Features()(np.zeros((0, 1, 16, 16), np.float32)).shape == (0, 112)


def test_more_noise_moves_features_further_away() -> None:
    clean = np.tile(np.linspace(-1, 1, 64, dtype=np.float32), (1, 1, 64, 1))
    noise = np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    network = Features()
    start = network(clean)
    moved = [float((network(clean + share * noise) - start).norm()) for share in (0.1, 0.3, 1.0)]
    assert moved == sorted(moved)

"""The release of statistics: what one patient can move, and what comes out of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmedgen.errors import PrivacyError, SettingsError
from fedmedgen.privacy import statistics
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.randomness import Stream
from fedmedgen.privacy.statistics import Layout, patient_vector

MOMENTS = Layout(num_classes=3, dimension=4, kind="moments")
KERNEL = Layout(num_classes=3, dimension=4, kind="kernel-mean", features=6)
EACH = pytest.mark.parametrize("layout", [MOMENTS, KERNEL, Layout(0, 4, "moments"), Layout(1, 4, "kernel-mean", 2)])

odd = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 0.0])
many = settings(max_examples=150, deadline=None, derandomize=True, database=None)
clip_norms = st.floats(-4, 4).map(lambda power: 10.0**power)


@st.composite
def patients(draw: st.DrawFn, most: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Coefficients and labels of patients with no, one or many images; some values and labels are absurd."""
    return [draw(patient()) for _ in range(draw(st.integers(0, most)))]


@st.composite
def patient(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    images = draw(st.integers(0, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    z = torch.randn(images, 4, generator=generator) * 10.0 ** draw(st.integers(-3, 3))
    for value in draw(st.lists(odd, max_size=3)) if images else []:
        z.view(-1)[draw(st.integers(0, z.numel() - 1))] = value
    labels = draw(st.lists(st.integers(-2, 5), min_size=images, max_size=images))
    return z, torch.tensor(labels, dtype=torch.long)


def plan(**changes: float) -> StagePlan:
    kept = {"sample_rate": 1.0, "noise_multiplier": 1e-9, "clip_norm": 1e3, "steps": 1, "denominator_patients": 100}
    return StagePlan(name="statistics", **(kept | changes))  # type: ignore[arg-type]


def frequencies(layout: Layout) -> Tensor | None:
    return statistics.random_frequencies(layout, 0) if layout.kind == "kernel-mean" else None


def vectors(people: list[tuple[Tensor, Tensor]], layout: Layout) -> list[Tensor]:
    return [patient_vector(z, labels, layout, frequencies(layout)) for z, labels in people]


def population(seed: int = 0) -> tuple[Tensor, Tensor]:
    """100 images ``[100, 4]`` of three classes with means and covariances of their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(100) % 7 % 3
    mixing = torch.randn(3, 4, 4, generator=generator)
    z = torch.einsum("nij,nj->ni", mixing[labels], torch.randn(100, 4, generator=generator)) + labels[:, None]
    return z, labels


def mean_vector(layout: Layout, z: Tensor, labels: Tensor) -> Tensor:
    people = [(z[i : i + 1], labels[i : i + 1]) for i in range(len(z))]
    return statistics.release(vectors(people, layout), plan(), Stream.seeded(0))


@EACH
@many
@given(people=patients(), one=patient(), clip_norm=clip_norms)
def test_whatever_a_patients_images_are_she_moves_the_sum_by_at_most_the_clip(
    layout: Layout, people: list[tuple[Tensor, Tensor]], one: tuple[Tensor, Tensor], clip_norm: float
) -> None:
    others, own = vectors(people, layout), vectors([one], layout)
    without = statistics.clipped_sum(others, clip_norm, layout.size)
    moved = statistics.clipped_sum(own + others, clip_norm, layout.size) - without
    assert bool(without.isfinite().all())
    assert float(moved.norm()) <= clip_norm * (1 + 1e-5)


@EACH
@many
@given(one=patient(), copies=st.integers(2, 5))
def test_equal_images_many_times_count_no_more_than_once(
    layout: Layout, one: tuple[Tensor, Tensor], copies: int
) -> None:
    z, labels = one
    once, often = vectors([(z, labels), (z.repeat(copies, 1), labels.repeat(copies))], layout)
    torch.testing.assert_close(once, often)


@pytest.mark.parametrize("layout", [MOMENTS, KERNEL, Layout(1, 4, "moments")])
@many
@given(one=patient(), values=st.lists(odd, min_size=4, max_size=4), label=st.sampled_from([-1, 3, 99]))
def test_an_image_without_a_known_label_adds_nothing_whatever_its_values(
    layout: Layout, one: tuple[Tensor, Tensor], values: list[float], label: int
) -> None:
    z, labels = one
    more = torch.cat([z, torch.tensor([values])]), torch.cat([labels, torch.tensor([label])])
    alone, beside = vectors([(z, labels), more], layout)
    torch.testing.assert_close(beside * (len(z) + 1), alone * len(z))


@EACH
def test_a_value_that_is_not_finite_makes_the_patient_zero_and_leaves_the_others(layout: Layout) -> None:
    z, labels = population()
    broken = z[:3].clone()
    broken[1, 2] = math.nan
    spoilt, whole = vectors([(broken, labels[:3] * 0), (z[:3], labels[:3] * 0)], layout)
    assert not spoilt.any()
    assert torch.equal(statistics.clipped_sum([spoilt, whole], 1e3, layout.size), whole)


def test_the_second_moments_are_the_upper_triangle_with_root_two_off_the_diagonal() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0]])
    vector = patient_vector(z, torch.tensor([0]), Layout(1, 3, "moments"))
    count, mean, second = (math.sqrt(share) for share in statistics.MOMENT_WEIGHTS)
    root = math.sqrt(2)
    expected = torch.tensor([1.0, 2 * root, 3 * root, 4.0, 6 * root, 9.0], dtype=torch.float64)
    torch.testing.assert_close(vector[4:], second * expected)
    torch.testing.assert_close(
        vector[:4] / torch.tensor([count, mean, mean, mean]).double(), z.new_tensor([1, 1, 2, 3]).double()
    )
    assert float((vector[4:] / second).norm()) == pytest.approx(float(z.square().sum()))


@EACH
def test_a_patient_of_unit_length_has_a_vector_of_unit_norm(layout: Layout) -> None:
    z = torch.nn.functional.normalize(population()[0], dim=1)
    for row in z:
        (vector,) = vectors([(row[None], torch.tensor([0]))], layout)
        assert float(vector.norm()) == pytest.approx(1)


def test_without_noise_each_class_gets_back_its_share_mean_and_covariance() -> None:
    z, labels = population()
    found = statistics.decode(mean_vector(MOMENTS, z, labels), MOMENTS, shrink=0.0)
    for label in range(3):
        own = z[labels == label].double()
        assert float(found.shares[label]) == pytest.approx(len(own) / 100, abs=1e-5)
        torch.testing.assert_close(found.means[label], own.mean(dim=0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.covariances[label], torch.cov(own.T, correction=0), atol=1e-3, rtol=1e-4)


def test_a_patients_images_share_her_one_vote() -> None:
    z, labels = population()
    zeros = labels * 0
    both = vectors([(z[:4], zeros[:4]), (z[4:5], zeros[4:5])], Layout(1, 4, "moments"))
    mean = statistics.release(both, plan(), Stream.seeded(0))
    found = statistics.decode(mean, Layout(1, 4, "moments"), shrink=0.0, floor=0.0)
    torch.testing.assert_close(found.means[0], (z[:4].mean(dim=0) + z[4]).double() / 2, atol=1e-4, rtol=1e-4)


def test_full_shrinkage_gives_every_class_the_pooled_covariance() -> None:
    z, labels = population()
    mean = mean_vector(MOMENTS, z, labels)
    apart, pooled = (statistics.decode(mean, MOMENTS, shrink=shrink) for shrink in (0.0, 1.0))
    expected = (apart.shares[:, None, None] * apart.covariances).sum(dim=0)
    torch.testing.assert_close(pooled.covariances, expected.expand(3, 4, 4))


@many
@given(seed=st.integers(0, 9999), size=st.floats(-6, 6), shrink=st.floats(0, 1))
def test_whatever_the_noise_covariances_are_valid_and_shares_sum_to_one(seed: int, size: float, shrink: float) -> None:
    noise = torch.randn(MOMENTS.size, generator=torch.Generator().manual_seed(seed)) * 10**size
    found = statistics.decode(mean_vector(MOMENTS, *population()) + noise, MOMENTS, shrink=shrink)
    assert bool((found.shares > 0).all())
    assert float(found.shares.sum()) == pytest.approx(1)
    for matrix in found.covariances:
        torch.testing.assert_close(matrix, matrix.T)
        values = torch.linalg.eigvalsh(matrix)
        assert float(values[0]) >= -1e-9 * float(values[-1])


def test_the_projection_keeps_the_trace_and_moves_a_matrix_least() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        a = torch.randn(5, 5, generator=generator, dtype=torch.float64)
        noisy = a @ a.T / 5 + (a + a.T) / 2
        found = statistics._positive(noisy)
        trace = max(float(noisy.trace()), statistics.NEGLIGIBLE)
        assert float(found.trace()) == pytest.approx(trace)
        for _ in range(50):
            b = torch.randn(5, 5, generator=generator, dtype=torch.float64)
            other = b @ b.T * trace / float((b @ b.T).trace())
            assert torch.dist(noisy, found) <= torch.dist(noisy, found + 0.1 * (other - found)) + 1e-12


def test_a_valid_covariance_is_left_as_it_is() -> None:
    a = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(statistics._positive(a.T @ a), a.T @ a)


def test_a_class_that_nobody_has_gets_finite_moments() -> None:
    found = statistics.decode(mean_vector(MOMENTS, population()[0], torch.zeros(100).long()), MOMENTS)
    assert all(bool(part.isfinite().all()) for part in (found.shares, found.means, found.covariances))
    assert float(found.shares[1]) < 0.02


def test_the_kernel_mean_of_each_class_comes_back_without_noise() -> None:
    z, labels = population()
    drawn = frequencies(KERNEL)
    assert drawn is not None
    shares, features = statistics.decode_embedding(mean_vector(KERNEL, z, labels), KERNEL)
    for label in range(3):
        own = statistics.embed(z[labels == label].double(), drawn)
        assert float(shares[label]) == pytest.approx(len(own) / 100, abs=1e-5)
        torch.testing.assert_close(features[label], own.mean(dim=0), atol=1e-5, rtol=1e-4)


def test_inner_products_of_features_are_near_the_gaussian_kernel() -> None:
    layout = Layout(1, 4, "kernel-mean", 20_000)
    z = 0.5 * population()[0][:10].double()
    features = statistics.embed(z, statistics.random_frequencies(layout, 1, bandwidth=1.5))
    kernel = (-torch.cdist(z, z).square() / (2 * 1.5**2)).exp()
    torch.testing.assert_close(features @ features.T, kernel, atol=0.04, rtol=0)


def test_the_noise_of_a_release_is_the_plans() -> None:
    layout = Layout(2, 60, "moments")
    stage = plan(noise_multiplier=3.0, clip_norm=2.0, denominator_patients=50)
    noise = statistics.release([], stage, Stream.seeded(1), size=layout.size)
    assert noise.dtype == torch.float32
    assert float(noise.std()) == pytest.approx(3.0 * 2.0 / 50, rel=0.05)
    assert abs(float(noise.mean())) < 4 * 0.12 / math.sqrt(layout.size)


def test_a_study_without_classes_has_one_block_for_all_images() -> None:
    z, _ = population()
    layout = Layout(num_classes=0, dimension=4, kind="moments")
    found = statistics.decode(mean_vector(layout, z, torch.zeros(100).long()), layout, shrink=0.5)
    assert (layout.blocks, layout.size) == (1, 1 + 4 + 10)
    torch.testing.assert_close(found.covariances[0], torch.cov(z.double().T, correction=0), atol=1e-3, rtol=1e-4)


def test_what_is_not_over_all_patients_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"over all patients; the plan says at rate 0\.5"):
        statistics.release([], plan(sample_rate=0.5), Stream.seeded(0), size=3)


def test_each_step_of_a_plan_of_several_is_a_release_of_its_own() -> None:
    vectors, stream = [torch.full((3,), 0.1, dtype=torch.float64)] * 4, Stream.seeded(0)
    first, second = (statistics.release(vectors, plan(steps=2), stream, size=3) for _ in range(2))
    assert torch.equal(first, statistics.release(vectors, plan(steps=1), Stream.seeded(0), size=3))
    assert not torch.equal(first, second)


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(PrivacyError, match=r"must have the layout's 3 numbers; got \[1\]"):
        statistics.clipped_sum([torch.ones(1, dtype=torch.float64)], 1.0, 3)
    with pytest.raises(PrivacyError, match=f"must be {MOMENTS.size} numbers"):
        statistics.decode(torch.zeros(5), MOMENTS)
    with pytest.raises(PrivacyError, match="say how long"):
        statistics.release([], plan(), Stream.seeded(0))
    with pytest.raises(PrivacyError, match="needs its public frequencies"):
        patient_vector(torch.zeros(1, 4), torch.zeros(1), KERNEL)


def test_a_layout_of_an_unknown_kind_or_of_odd_features_is_refused() -> None:
    with pytest.raises(SettingsError, match="moments or kernel-mean"):
        Layout(1, 2, "median")
    with pytest.raises(SettingsError, match="even and at least 2"):
        Layout(1, 2, "kernel-mean", 3)

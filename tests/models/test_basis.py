"""The public basis: what it spans, its scale, and how many coefficients pay."""

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmedgen.errors import SettingsError
from fedmedgen.models import basis as bases
from fedmedgen.models.basis import Basis, dimension_for


def public(count: int = 60, channels: int = 2) -> Tensor:
    """Smooth images ``[count, channels, 6, 8]`` of falling power."""
    generator = torch.Generator().manual_seed(0)
    falling = torch.arange(1, channels * 48 + 1).float() ** -0.7
    mixing = torch.linalg.qr(torch.randn(channels * 48, channels * 48, generator=generator)).Q
    rows = (torch.randn(count, channels * 48, generator=generator) * falling) @ mixing
    return rows.unflatten(1, (channels, 6, 8)) + 0.3


def both(power: float = 0.5, count: int = 60) -> list[Basis]:
    x = public(count)
    return [bases.pca(x, 10, power=power), bases.cosine((6, 8), 2, 10, x, power=power)]


def test_standardised_images_have_mean_0_and_deviation_1_whatever_their_exposure() -> None:
    x = public()
    plain, exposure = bases.standardised(x)
    assert torch.equal(plain[:, 1:], x[:, 1:])
    torch.testing.assert_close(plain[:, 0].mean(dim=(1, 2)), torch.zeros(60), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain[:, 0].std(dim=(1, 2), correction=0), torch.ones(60), atol=1e-4, rtol=0)
    centre, spread = exposure[:, :, None, None].unbind(1)
    torch.testing.assert_close(centre + spread * plain[:, 0], x[:, 0], atol=1e-5, rtol=0)
    brighter = torch.cat([0.5 * x[:, :1] + 0.2, x[:, 1:]], dim=1)
    torch.testing.assert_close(bases.standardised(brighter)[0], plain, atol=1e-4, rtol=0)


def test_a_flat_image_is_standardised_to_zeros() -> None:
    assert float(bases.standardised(torch.full((2, 1, 4, 4), 0.7))[0].abs().max()) < 1e-3


@pytest.mark.parametrize("count", [60, 200])
def test_components_are_orthonormal(count: int) -> None:
    for basis in both(count=count):
        flat = basis.components.flatten(1)
        torch.testing.assert_close(flat @ flat.T, torch.eye(10), atol=1e-5, rtol=0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [60, 200])
def test_public_images_have_coefficients_of_mean_zero_and_unit_square(power: float, count: int) -> None:
    for basis in both(power, count):
        z = basis.coefficients(public(count))
        torch.testing.assert_close(z.mean(dim=0), torch.zeros(10), atol=1e-5, rtol=0)
        assert float(z.square().sum(dim=1).mean()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_scale_is_in_proportion_to_the_deviation_to_the_power(power: float) -> None:
    for basis in both(power):
        deviation = ((public() - basis.mean).flatten(1) @ basis.components.flatten(1).T).square().mean(dim=0).sqrt()
        ratio = basis.scale / deviation**power
        torch.testing.assert_close(ratio, ratio.mean().expand(10), atol=0, rtol=1e-3)


def test_an_image_is_what_the_basis_spans_and_a_residual_that_it_does_not() -> None:
    x = public()
    for basis in both():
        rest = basis.residual(x)
        torch.testing.assert_close(basis.images(basis.coefficients(x)) + rest, x, atol=1e-5, rtol=0)
        assert float((rest.flatten(1) @ basis.components.flatten(1).T).abs().max()) < 1e-5
        z = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(basis.coefficients(basis.images(z)), z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [60, 200])
def test_principal_components_leave_no_more_than_any_other_basis_of_the_size(count: int) -> None:
    x = public(count)
    left = bases.pca(x, 10).residual(x).square().sum()
    assert left < bases.cosine((6, 8), 2, 10, x).residual(x).square().sum()
    best = torch.linalg.svdvals((x - x.mean(dim=0)).flatten(1).double())[10:].square().sum()
    assert float(left) == pytest.approx(float(best), rel=1e-3)


def test_cosines_come_from_the_lowest_frequency_up_in_every_channel() -> None:
    basis = bases.cosine((6, 8), 2, 4, public())
    for place, channel in enumerate((0, 1)):
        constant = basis.components[place, channel]
        torch.testing.assert_close(constant, torch.full((6, 8), 48**-0.5), atol=1e-5, rtol=0)
        assert not basis.components[place, 1 - channel].any()
    assert not basis.components[2:].sum(dim=(2, 3)).abs().gt(1e-5).any()


def test_without_public_images_cosines_fall_in_scale() -> None:
    basis = bases.cosine((6, 8), 1, 12)
    assert not basis.mean.any()
    assert float(basis.scale[0]) == float(basis.scale.max())
    assert float(basis.scale.min()) > 0


def test_a_basis_comes_through_the_wire_the_same() -> None:
    for basis in both():
        arrays = basis.to_arrays()
        assert set(arrays) == {"basis.mean", "basis.components", "basis.scale"}
        assert all(value.dtype == np.float32 for value in arrays.values())
        back = Basis.from_arrays(arrays)
        assert all(torch.equal(getattr(back, name), getattr(basis, name)) for name in ("mean", "components", "scale"))


def test_a_basis_whose_parts_do_not_fit_is_refused() -> None:
    arrays = both()[0].to_arrays() | {"basis.scale": np.ones(9, np.float32)}
    with pytest.raises(SettingsError, match="basis must be"):
        Basis.from_arrays(arrays)


def test_more_components_than_the_images_span_are_refused() -> None:
    with pytest.raises(SettingsError, match="dimension must be from 1 to 59"):
        bases.pca(public(), 60)
    with pytest.raises(SettingsError, match="from 1 to 96"):
        bases.cosine((6, 8), 2, 97)


def test_images_that_are_all_the_same_make_no_basis() -> None:
    with pytest.raises(SettingsError):
        bases.pca(torch.ones(5, 1, 4, 4), 1)
    with pytest.raises(SettingsError, match="must vary"):
        bases.cosine((4, 4), 1, 2, torch.ones(5, 1, 4, 4))


def test_four_sites_get_96_coefficients_at_epsilon_10_and_36_at_epsilon_1() -> None:
    assert dimension_for(0.57, 4 * 1177, 4, 400) == 96
    assert dimension_for(3.9, 4 * 1177, 4, 400) == 36


def test_less_noise_more_patients_and_fewer_sites_allow_more_coefficients() -> None:
    assert dimension_for(0.0, 100, 4, 77) == 77
    assert dimension_for(1e-6, 100, 4, 77) == 77
    assert dimension_for(1e5, 10, 4, 77) == 1
    middle = dimension_for(1.0, 4000, 4, 400)
    assert dimension_for(0.5, 4000, 4, 400) > middle > dimension_for(2.0, 4000, 4, 400)
    assert dimension_for(1.0, 8000, 4, 400) > middle > dimension_for(1.0, 4000, 16, 400)


def test_the_noise_of_the_second_moments_stays_near_the_mean_eigenvalue() -> None:
    for noise, sites in ((0.57, 4), (3.9, 4), (1.0, 1)):
        patients = 1177 * sites
        d = dimension_for(noise, patients, sites, 400)
        entries = torch.randn(d * (d + 1) // 2, generator=torch.Generator().manual_seed(0))
        frobenius = float(entries.norm()) * noise * sites**0.5 / patients
        assert 1 / d < frobenius < 2 / d


def test_the_rule_sees_public_numbers_alone() -> None:
    public = ["noise_multiplier", "patients", "sites", "limit", "paying"]
    assert list(inspect.signature(dimension_for).parameters) == public
    for bad in ((float("nan"), 10, 1, 5), (-1.0, 10, 1, 5), (1.0, 0, 1, 5), (1.0, 10, 0, 5), (1.0, 10, 1, 0)):
        with pytest.raises(SettingsError, match="must be"):
            dimension_for(*bad)

"""What draws images from released statistics; saved beside its arrays, it needs torch and diffusers alone."""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class CoefficientSampler(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Images of a class: the public mean, coefficients along public components, one of `pool_size` public residuals.

    All that is standardised; each image then gets one of `num_exposures` public exposures, a mean and a deviation.

    The coefficients come from a Gaussian for each class, or (`hidden` above 0) from a network of that width.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        shape: Sequence[int],
        dimension: int,
        num_classes: int,
        pool_size: int = 0,
        num_exposures: int = 1,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.mean = _array(*shape)
        self.components = _array(dimension, *shape)
        self.scale = _array(dimension)
        self.exposures = _array(num_exposures, 2)
        self.residuals = _array(pool_size, *shape) if pool_size else None
        self.network = coefficient_network(dimension, num_classes, hidden) if hidden else None
        if not hidden:
            self.means = _array(num_classes, dimension)
            self.factors = _array(num_classes, dimension, dimension)

    def coefficients(self, labels: Tensor, noise: Tensor) -> Tensor:
        """**Shapes** labels ``[B]``, unit noise ``[B, d]`` -> ``[B, d]``."""
        if self.network is not None:
            return transformed(self.network, labels, noise, self.config.num_classes)
        return self.means[labels] + (self.factors[labels] @ noise[:, :, None])[:, :, 0]

    @torch.no_grad()
    def draw(self, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        """One image ``[B, C, H, W]`` in [-1, 1] for each of the labels ``[B]`` (0, ... K - 1) and seeds.

        **Guarantee** An image depends on its own label and seed alone.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(self.config.dimension, generator=own) for own in generators])
        z = self.coefficients(labels.to(self.mean.device), noise.to(self.mean))
        x: Tensor = self.mean + ((z * self.scale) @ self.components.flatten(1)).reshape(-1, *self.mean.shape)
        if self.residuals is not None:
            x = x + self.residuals[_one_each(len(self.residuals), generators)]
        centre, spread = self.exposures[_one_each(len(self.exposures), generators)][:, :, None, None, None].unbind(1)
        return torch.cat([centre + spread * x[:, :1], x[:, 1:]], dim=1).clamp(-1, 1)


def _one_each(count: int, generators: Sequence[torch.Generator]) -> list[int]:
    return [int(torch.randint(count, (), generator=own)) for own in generators]


def coefficient_network(dimension: int, num_classes: int, hidden: int) -> nn.Sequential:
    """From unit noise and the class to coefficients."""
    return nn.Sequential(
        nn.Linear(dimension + num_classes, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, dimension),
    )  # fmt: skip


def transformed(network: nn.Module, labels: Tensor, noise: Tensor, num_classes: int) -> Tensor:
    """Coefficients ``[B, d]`` that the network makes of unit noise ``[B, d]`` for labels ``[B]``."""
    out: Tensor = network(torch.cat([noise, nn.functional.one_hot(labels, num_classes).to(noise)], dim=1))
    return out


def _array(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)

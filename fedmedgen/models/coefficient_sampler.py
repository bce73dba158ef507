"""What draws images from released statistics; saved beside its arrays, it needs torch and diffusers alone."""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
SMOOTHED = 20  # of an image's longer side, the window that masks are averaged over; chosen on phantoms
POOLED = 3
NUMBERS = POOLED**2 * WIDTHS[-1]  # of one network's last layer but one
LARGEST_SIDE = 32
FLATTEST = 1e-3  # deviation that a picture is taken to have at least


class LearnedFeatures(nn.Module):
    """A few directions in what small networks see that have learned to tell classes apart.

    **Shapes** grey images ``[B, 1, H, W]``, of any exposure -> ``[B, dimension]``
    """

    def __init__(self, *, num_classes: int, networks: int, dimension: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(classifier(num_classes) for _ in range(networks))
        self.centre = _array(networks * NUMBERS)
        self.directions = _array(dimension, networks * NUMBERS)

    def numbers(self, x: Tensor) -> Tensor:
        """All that the networks see, ``[B, networks * NUMBERS]``."""
        x = x - x.mean(dim=(2, 3), keepdim=True)
        x = x / x.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=FLATTEST)
        share = min(1.0, LARGEST_SIDE / max(x.shape[2:]))
        if share < 1:
            size = [max(1, round(share * side)) for side in x.shape[2:]]
            x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
        return torch.cat([nn.Sequential(*list(network.children())[:-1])(x) for network in self.networks], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.numbers(x) - self.centre) @ self.directions.T


class CoefficientSampler(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Images of a class: the public mean, coefficients along public components, one of `pool_size` public residuals.

    With `nearest` the residual is that of the public image nearest to the one drawn, and the masks are its own.
    All that is standardised; each image then gets one of `num_exposures` public exposures, a mean and a deviation.

    The coefficients come from a Gaussian for each class, or (`hidden` above 0) from a network of that width. Of so many
    `candidates` the one is kept whose learned `features` (of so many `networks`; 0: none) speak most for its class.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913  (the sizes of its arrays, by name)
        self,
        *,
        shape: Sequence[int],
        dimension: int,
        num_classes: int,
        pool_size: int = 0,
        num_exposures: int = 1,
        hidden: int = 0,
        networks: int = 0,
        features: int = 0,
        candidates: int = 1,
        nearest: bool = False,
    ) -> None:
        super().__init__()
        self.mean = _array(*shape)
        self.components = _array(dimension, *shape)
        self.scale = _array(dimension)
        self.exposures = _array(num_exposures, 2)
        self.residuals = _array(pool_size, *shape) if pool_size else None
        self.codes = _array(pool_size, dimension) if nearest else None
        self.network = coefficient_network(dimension, num_classes, hidden) if hidden else None
        if not hidden:
            self.means = _array(num_classes, dimension)
            self.factors = _array(num_classes, dimension, dimension)
        self.learned = None
        if networks:
            self.learned = LearnedFeatures(num_classes=num_classes, networks=networks, dimension=features)
            self.weights = _array(num_classes, features)
            self.offsets = _array(num_classes)

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
        labels = labels.to(self.mean.device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if self.learned is None:
            return self._drawn(labels, generators)
        drawn = torch.stack([self._drawn(labels, generators) for _ in range(self.config.candidates)], dim=1)
        kept = [options[self._fittest(options, label)] for options, label in zip(drawn, labels.tolist(), strict=True)]
        return torch.stack(kept)

    def _drawn(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """One image of each label, from where each one's own generator stands."""
        noise = [torch.randn(self.config.dimension, generator=own) for own in generators]
        z = self.coefficients(labels, torch.stack(noise).to(self.mean))
        x: Tensor = self.mean + ((z * self.scale) @ self.components.flatten(1)).reshape(-1, *self.mean.shape)
        grey, masks = x[:, :1], _smoothed(x[:, 1:])
        if self.residuals is not None and self.codes is not None:
            rest = self.residuals[torch.cdist(z * self.scale, self.codes * self.scale).argmin(dim=1)]
            grey, masks = grey + rest[:, :1], rest[:, 1:]
        elif self.residuals is not None:
            rest = self.residuals[_one_each(len(self.residuals), generators)]
            grey, masks = grey + rest[:, :1], _smoothed(x[:, 1:] + rest[:, 1:])
        centre, spread = self.exposures[_one_each(len(self.exposures), generators)][:, :, None, None, None].unbind(1)
        return torch.cat([centre + spread * grey, _within(masks)], dim=1).clamp(-1, 1)

    def _fittest(self, options: Tensor, label: int) -> int:
        """Which of the images ``[M, C, H, W]`` is the likeliest to be of the class, by its learned features."""
        assert self.learned is not None
        scores = self.learned(options[:, :1]) @ self.weights.T + self.offsets
        return int(scores.log_softmax(dim=1)[:, label].argmax())


def _smoothed(masks: Tensor) -> Tensor:
    """Mask channels without the thin outlines that a sum of few components leaves around an edge."""
    window = max(masks.shape[-2:]) // SMOOTHED | 1
    if window == 1 or not masks.shape[1]:
        return masks
    padded = nn.functional.pad(masks, [window // 2] * 4, mode="replicate")
    return nn.functional.avg_pool2d(padded, window, stride=1)


def _within(masks: Tensor) -> Tensor:
    """Mask channels within [-1, 1]: a pixel beyond is scaled, so that its highest channel stays the highest."""
    return masks / masks.abs().amax(dim=1, keepdim=True).clamp(min=1) if masks.shape[1] else masks


def _one_each(count: int, generators: Sequence[torch.Generator]) -> list[int]:
    return [int(torch.randint(count, (), generator=own)) for own in generators]


def classifier(num_classes: int) -> nn.Sequential:
    """From standardised grey images ``[B, 1, H, W]`` to a score for each class; its last layer is linear."""
    layers: list[nn.Module] = []
    before = 1
    for width, stride in zip((*WIDTHS, WIDTHS[-1]), (1, 2, 2, 1), strict=True):
        layers += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
        before = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(POOLED), nn.Flatten(), nn.Dropout(0.2), nn.Linear(NUMBERS, num_classes)
    )


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

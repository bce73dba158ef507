"""Arrays on disk: safetensors, written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fedmedgen.errors import RunError


def save_arrays(path: Path, arrays: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write the arrays to `path`.

    **Guarantee** After a crash at any moment the file holds the old arrays or the new, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({name: value.detach().cpu().contiguous() for name, value in arrays.items()}, dict(metadata or {}))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays at `path`.

    **Raises** `RunError` if the file is missing or not whole.
    """
    try:
        arrays: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path.name} can't be read as safetensors ({error}); restore it or start the run anew"
        ) from error
    return arrays


def load_metadata(path: Path) -> dict[str, str]:
    """The words written with the arrays at `path`.

    **Raises** `RunError` if the file is missing or not whole.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path.name} can't be read as safetensors ({error}); restore it or start the run anew"
        ) from error

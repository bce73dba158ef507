"""A site that cheats: Flower's own programs with its own key, and replies that are twisted on their way out.

`python -m simulations.campaigns.rogue TWIST POLICY [option of flower-supernode …]`, where the file TWIST says how.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TWIST = "FEDMEDGEN_TWIST"
TWISTS = ("nan", "shapes", "enormous", "replay", "identity")


def twist(content: Any, how: str, kept: Path) -> None:
    """Make a reply what a cheat would send; `kept` is where the arrays of an old one lie."""
    from flwr.app import ConfigRecord

    from fedmedgen.federation import messages

    if how == "identity":
        content["config"] = ConfigRecord({**content["config"], "site": "north"})
    if "arrays" not in content:
        return
    arrays: dict[str, Any] = messages.unpack_arrays(content["arrays"])
    if how == "replay" and kept.is_file():
        arrays = dict(np.load(kept))
    else:
        np.savez(kept, **arrays)
    change = {"nan": lambda value: value * np.nan, "shapes": lambda value: value[None], "enormous": _enormous}
    if how in change:
        arrays = {name: change[how](value).astype(np.float32) for name, value in arrays.items()}
    content["arrays"] = messages.pack_arrays(arrays)


def _enormous(value: Any) -> Any:
    return value + 1e12


def as_program(words: list[str]) -> None:
    """In the place of `flwr-clientapp`: the honest guard and app, with their replies twisted."""
    from fedmedgen.deployment import guard

    path = guard.__file__
    for name in [name for name in sys.modules if name.split(".")[0] == "fedmedgen"]:
        del sys.modules[name]  # the bundle brings its own
    spec = importlib.util.spec_from_file_location("guard_of_a_rogue", path)
    assert spec is not None
    assert spec.loader is not None
    own: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    honest, place = own.guard, Path(os.environ[TWIST])

    def cheating(runtime: Any, policy: Path, folder: Path) -> None:
        honest(runtime, policy, folder)
        loader = runtime.get_load_client_app_fn

        def load(**words: object) -> Callable[..., Any]:
            found = loader(**words)

            def app(*given: Any, **named: Any) -> Any:
                client = found(*given, **named)

                def answer(message: Any, context: Any) -> Any:
                    said = client(message=message, context=context)
                    how = place.read_text().strip() if place.is_file() else ""
                    twist(said.content, how, place.with_suffix(".npz"))
                    return said

                return answer

            return app

        runtime.get_load_client_app_fn = load

    own.guard = cheating
    own.main(words)


def as_supernode(words: list[str]) -> int:
    from fedmedgen.deployment import guard, supernode

    os.environ[TWIST] = str(Path(words[0]).resolve())
    guard.__file__ = __file__
    return supernode.main(words[1:])


if __name__ == "__main__":
    if sys.argv[1] == "flwr-clientapp":
        as_program(sys.argv[1:])
    else:
        raise SystemExit(as_supernode(sys.argv[1:]))

"""`fedmedgen selfcheck [key=value …]`: the DP engines against one-at-a-time gradients on the configured model."""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedmedgen.data.cases import Case
    from fedmedgen.settings import Settings

    Subject = tuple[str, nn.Module, Callable[[nn.Module, dict[str, Tensor]], Tensor], "RowsFactory"]
    RowsFactory = Callable[[int], list[dict[str, Tensor]]]

EXAMPLE = "example:\n  fedmedgen selfcheck study=demo generator.channels=[32,64,64]"


def add(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Plug the command into the program."""
    parser = subparsers.add_parser(
        "selfcheck",
        help="the DP engines against one-at-a-time gradients on the configured model",
        description="Compare every DP engine with one-at-a-time gradients on the study's own networks, "
        "with random weights and random images. Exit code 1 if the configured engine is wrong.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as for simulate")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check every engine on each network; the configured engine decides the exit code."""
    from fedmedgen.composition import compose
    from fedmedgen.errors import PrivacyError
    from fedmedgen.privacy import kernels
    from fedmedgen.privacy.per_patient import ENGINES

    settings = compose(arguments.overrides)
    kernels.keep_in(settings.runtime.kernel_cache)
    results, refusals = [], {}
    precision = settings.privacy.precision
    for name, model, loss, rows_factory in _subjects(settings):
        for engine in ENGINES:
            try:
                results.append({"model": name, **_check(engine, precision, model, loss, rows_factory)})
            except PrivacyError as refusal:
                results.append({"model": name, "engine": engine, "passed": False, "reason": str(refusal)})
                refusals[engine] = refusal
    if arguments.json:
        print(json.dumps({"engine": settings.privacy.engine, "checks": results}))
    else:
        print("\n".join(map(_words, results)))
    if settings.privacy.engine in refusals:
        raise refusals[settings.privacy.engine]
    return 0


def _check(engine: str, precision: str, model: "nn.Module", loss: Any, rows_factory: "RowsFactory") -> dict[str, Any]:
    from dataclasses import asdict

    from fedmedgen.privacy import kernels
    from fedmedgen.privacy.selfcheck import check_engine

    with kernels.measuring():
        return {"passed": True, **asdict(check_engine(engine, model, loss, rows_factory, precision=precision))}


def _subjects(settings: "Settings") -> "Iterator[Subject]":
    """The study's networks, each with its loss and random rows."""
    from functools import partial

    from fedmedgen.devices import device_of
    from fedmedgen.federation.local_round import build_model, loss_of
    from fedmedgen.federation.plan import GENERATOR, SEGMENTER

    segments = settings.data.mask_classes and settings.segmenter.rounds
    for stage in (GENERATOR, SEGMENTER) if segments else (GENERATOR,):
        model = build_model(settings, stage).to(device_of(settings))
        yield stage, model, loss_of(settings, stage), partial(_rows, settings, stage, model)


def _cases(settings: "Settings", patient: int) -> "list[Case]":
    """A patient of one to three images of pure noise."""
    import numpy as np

    from fedmedgen.data.cases import Case

    rng = np.random.default_rng([settings.seed, patient])
    classes, masks = len(settings.data.classes), len(settings.data.mask_classes)
    return [
        Case(
            image=rng.uniform(-1, 1, (1, *settings.data.size)).astype(np.float32),
            name=f"{patient}-{image}",
            label=int(rng.integers(classes)) if classes else None,
            mask=rng.integers(masks, size=settings.data.size).astype(np.uint8) if masks else None,
        )
        for image in range(1 + patient % 3)
    ]


def _rows(settings: "Settings", stage: str, model: "nn.Module", count: int) -> "list[dict[str, Tensor]]":
    import torch

    from fedmedgen.devices import device_of
    from fedmedgen.federation.local_round import draw_rows
    from fedmedgen.training.rows import to_device

    generator = torch.Generator().manual_seed(settings.seed)
    drawn = [draw_rows(settings, stage, 2, _cases(settings, n), generator, model) for n in range(count)]
    return [to_device(rows, device_of(settings)) for rows in drawn]


def _words(result: dict[str, Any]) -> str:
    if not result["passed"]:
        return f"{result['model']}, engine {result['engine']}: WRONG: {result['reason']}"
    return (
        f"{result['model']}, engine {result['engine']}, {result['precision']}: right to {result['largest_error']:.1e} "
        f"over {result['parameters']} parameters, {result['patients']} patients, {result['rows']} rows"
    )

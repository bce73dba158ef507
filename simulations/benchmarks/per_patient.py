"""Gradients by patient: every method's error first, then its time and memory beside an ordinary step's."""

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedmedgen.errors import PrivacyError
from simulations.benchmarks.memory import peak_megabytes
from simulations.benchmarks.methods import Step, methods
from simulations.benchmarks.subject import Transformer, loss, network, patients
from simulations.benchmarks.timing import Times, in_turn, machine, one_thread, peak_gflops, ratio

BATCH, DRAWS, REPEATS, CLIP_NORM = 128, 8, 3, 0.5
TOLERANCE = {"fp32": 1e-5, "bf16": 2**-5}  # of the clipped sum, beside one patient at a time in fp32
RIVALS = ("one_at_a_time", "hooks", "hooks_einsum", "functorch", "vmap", "opake")
OURS = ("fused_fp32", "fused_bf16")
BESIDE = ("ordinary_fp32", "ordinary_bf16", "one_at_a_time", *OURS)  # of those measured on the transformer, too
SEVERAL = ("ordinary_fp32", "one_at_a_time", "fused_fp32", "fused_bf16")  # of those compared with several draws


def measure(*, quick: bool = False) -> dict[str, Any]:
    """The whole benchmark on one thread; `quick` runs the same path on a tiny network, once."""
    with one_thread():
        return _measured(quick)


def lines(found: dict[str, Any]) -> list[str]:
    """The result as a page's tables."""
    ratios, spread = found["ratios"], found["spread"]
    rows = [
        f"| {name} | {each['rows_per_second']:.1f} | {_number(each.get('share_of_peak'), '.0%')} |"
        f" {_number(found['errors'].get(name), '.1e')} | {_number(each.get('peak_megabytes'), '.0f')} |"
        for name, each in found["methods"].items()
    ]
    beside = [
        f"| {name} | {each['rows_per_second']:.1f} |"
        f" {each['rows_per_second'] / found['methods'][name]['rows_per_second']:.2f} |"
        f" {_number(each['share_of_peak'], '.0%')} | {_number(found['transformer']['errors'].get(name), '.1e')} |"
        for name, each in found["transformer"]["methods"].items()
    ]
    several = [f"| {name} | {value:.1f} |" for name, value in found["milliseconds_per_draw"].items()]
    return [
        f"{found['batch']} patients of one row each, one core ({found['machine']['processor']}):",
        "",
        "| method | rows a second | share of the peak | error of the sum | MB at the peak (64 patients) |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"{found['batch'] // found['draws']} patients of {found['draws']} draws each:",
        "",
        "| method | ms a draw |",
        "| --- | --- |",
        *several,
        "",
        f"The same on the diffusion transformer of {found['transformer']['parameters']:,} parameters"
        f" ({found['transformer']['gigaflops_per_row']:.2f} GFLOP a row; the UNet's {found['parameters']:,} take"
        f" {found['gigaflops_per_row']:.2f}):",
        "",
        "| method | rows a second | of the UNet's | share of the peak | error of the sum |",
        "| --- | --- | --- | --- | --- |",
        *beside,
        "",
        *(f"- {name}: {value:.2f} {_spread(spread.get(name))}" for name, value in ratios.items()),
    ]


def _measured(quick: bool) -> dict[str, Any]:
    batch, draws, repeats = (4, 2, 1) if quick else (BATCH, DRAWS, REPEATS)
    model = network(quick=quick)
    steps = methods(model, CLIP_NORM)
    errors = _errors(steps, patients(min(batch, 16) + 1, 1))  # a batch that isn't full, too
    errors |= {f"{name}, {draws} draws": error for name, error in _errors(steps, patients(3, draws)).items()}
    single = _times(steps, list(steps), patients(batch, 1), repeats)
    several = _times(steps, SEVERAL, patients(max(1, batch // draws), draws), repeats)
    rivals = [name for name in RIVALS if name in steps]
    weighed = ("hooks", "hooks_einsum", *OURS) if quick else (*rivals, *OURS)
    megabytes = peak_megabytes(weighed, min(batch, 64), quick=quick)
    spread = {
        "fused_fp32_vs_hooks": ratio(single, "hooks", "fused_fp32"),
        "fused_bf16_vs_hooks": ratio(single, "hooks", "fused_bf16"),
        "fused_fp32_vs_hooks_einsum": ratio(single, "hooks_einsum", "fused_fp32"),
        "fused_bf16_vs_hooks_einsum": ratio(single, "hooks_einsum", "fused_bf16"),
        "fused_fp32_vs_best_rival": ratio(single, min(rivals, key=lambda name: median(single[name])), "fused_fp32"),
        "measured_kernels_vs_rule_fp32": ratio(single, "fused_fp32", "fused_measured_fp32"),
        "measured_kernels_vs_rule_bf16": ratio(single, "fused_bf16", "fused_measured_bf16"),
        "private_vs_ordinary_k8": ratio(several, "fused_fp32", "ordinary_fp32"),
        "private_bf16_vs_ordinary_k8": ratio(several, "fused_bf16", "ordinary_fp32"),
    }
    ratios = {name: value["median"] for name, value in spread.items()}
    ratios["peak_memory_vs_hooks"] = megabytes["fused_fp32"] / megabytes["hooks"]
    ratios["peak_memory_vs_hooks_einsum"] = megabytes["fused_fp32"] / megabytes["hooks_einsum"]
    flops, peaks = 3 * _forward_flops(model), {"fp32": torch.float32, "bf16": torch.bfloat16}
    reached = {name: peak_gflops(dtype) for name, dtype in peaks.items()}
    return {
        "batch": batch,
        "draws": draws,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gigaflops_per_row": flops / 1e9,
        "peak_gigaflops": reached,
        "ratios": ratios,
        "spread": spread,
        "errors": errors,
        "methods": {
            name: _described(times, batch, flops, reached[_precision(name)], megabytes.get(name))
            for name, times in single.items()
        },
        "milliseconds_per_draw": {name: 1e3 * median(t) / batch for name, t in several.items()},
        "transformer": _transformer(quick, batch, repeats, reached),
        "machine": machine(),
    }


def _transformer(quick: bool, batch: int, repeats: int, reached: dict[str, float]) -> dict[str, Any]:
    """The same of the other denoiser, which has linear layers and norms alone."""
    model = Transformer(quick=quick)
    steps = {name: step for name, step in methods(model, CLIP_NORM).items() if name in BESIDE}
    errors = _errors(steps, patients(min(batch, 16) + 1, 1))
    times, flops = _times(steps, BESIDE, patients(batch, 1), repeats), 3 * _forward_flops(model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "gigaflops_per_row": flops / 1e9,
        "errors": errors,
        "methods": {name: _described(times[name], batch, flops, reached[_precision(name)], None) for name in BESIDE},
    }


def _errors(steps: dict[str, Step], people: list[Any]) -> dict[str, float]:
    """How far each sum is from that of one patient at a time, relative.

    **Raises** `PrivacyError` where a method that claims to clip by patient doesn't.
    """
    truth = steps["one_at_a_time"](people)
    errors = {
        name: _norm([a - b for a, b in zip(step(people), truth, strict=True)]) / _norm(truth)
        for name, step in steps.items()
        if not name.startswith("ordinary")
    }
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE[_precision(name)]}
    if wrong:
        raise PrivacyError(f"gradients by patient are wrong, so their time means nothing: {wrong}")
    return errors


def _times(steps: dict[str, Step], names: Sequence[str], people: list[Any], repeats: int) -> Times:
    for name in names:
        steps[name](people[:1] if name == "one_at_a_time" else people[: max(1, len(people) // 4)])  # warm
    return in_turn({name: partial(steps[name], people) for name in names}, repeats)


def _described(
    times: list[float], rows: int, flops: float, peak: float, megabytes: float | None
) -> dict[str, float | None]:
    rate = rows / median(times)
    return {
        "rows_per_second": rate,
        "milliseconds_per_row": 1e3 / rate,
        "share_of_peak": rate * flops / 1e9 / peak,
        "peak_megabytes": megabytes,
    }


def _forward_flops(model: nn.Module) -> float:
    rows = dict(patients(1, 1)[0])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loss(model, rows)
    return float(counter.get_total_flops())


def _precision(name: str) -> str:
    return "bf16" if name.endswith("bf16") else "fp32"


def _norm(parts: Sequence[Tensor]) -> float:
    return float(torch.stack([part.double().norm() for part in parts]).norm())


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _spread(each: dict[str, float] | None) -> str:
    return "" if each is None else f"({each['least']:.2f} to {each['largest']:.2f})"

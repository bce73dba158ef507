"""The yardsticks measure what they say, and refuse to time what is wrong."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fedmedgen.errors import PrivacyError
from simulations.benchmarks import command, memory, per_patient
from simulations.benchmarks.methods import methods
from simulations.benchmarks.subject import network, patients


def bench(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    arguments = parser.parse_args(["bench", *words])
    return int(arguments.run(arguments))


def test_every_method_is_measured_and_the_result_is_json_a_page_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_patient, "peak_megabytes", lambda names, *_, **__: dict.fromkeys(names, 100.0))
    assert bench("per-patient", "--quick", "--json", "--out", str(tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = {"fused_fp32_vs_hooks", "fused_bf16_vs_hooks", "private_vs_ordinary_k8", "peak_memory_vs_hooks"}
    assert wanted <= set(found["ratios"])
    assert {"one_at_a_time", "hooks", "functorch", "vmap", "fused_fp32", "fused_measured_bf16"} <= set(found["methods"])
    assert found["errors"]["fused_fp32"] < 1e-6
    assert found["errors"]["fused_bf16"] < 2**-5
    assert found["transformer"]["errors"]["fused_fp32"] < 1e-6
    assert json.loads((tmp_path / "per-patient.json").read_text()) == found
    assert "| fused_bf16 |" in (tmp_path / "per-patient.md").read_text()
    assert (tmp_path / "per-patient.png").stat().st_size > 1000


def test_a_wrong_method_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def skewed(model: nn.Module, clip_norm: float) -> object:
        right = methods(model, clip_norm)
        return {**right, "hooks": lambda people: [1.1 * part for part in right["hooks"](people)]}

    monkeypatch.setattr(per_patient, "methods", skewed)
    with pytest.raises(PrivacyError, match=r"time means nothing: {'hooks': 0\.(1|0999)"):
        per_patient.measure(quick=True)


def test_opake_sums_what_one_patient_at_a_time_sums() -> None:
    pytest.importorskip("opake", reason="opake-dpsgd is optional: pip install opake-dpsgd")
    steps, people = methods(network(quick=True), 0.5), patients(3, 2)
    for own, true in zip(steps["opake"](people), steps["one_at_a_time"](people), strict=True):
        torch.testing.assert_close(own.double(), true, rtol=1e-4, atol=1e-6)


def test_memory_is_that_of_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["fused_fp32", "2", "1"])
    assert 50 < float(capsys.readouterr().out) < 1e5


def test_a_lean_copy_draws_nearly_the_same_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("sampling", "--quick", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratios"]["lean_vs_diffusers_10"] > 0
    assert all(rate > 0 for rate in found["batches"].values())
    assert found["methods"]["lean_dpmpp_10"]["fd"] < found["floor"]


def test_the_subject_is_the_same_every_time_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, other = network(quick=True), network(quick=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(patients(2, 3)[1]["x"], patients(2, 3)[1]["x"])
    assert torch.equal(before, torch.get_rng_state())

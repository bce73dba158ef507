"""A run's page of figures: it states every stage of the run's privacy plan, and no other."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedgen.privacy.ledger import Ledger, load_key
from simulations import results

SMALL = ("data.size=[16,16]", "prior.phantoms=40")
STUDIES = {
    "the statistics alone": ("generator=moments", "statistics.share=1", "segmenter.rounds=0"),
    "three stages": ("statistics.share=0.5", "curriculum.steps=2"),
}


@pytest.mark.parametrize("words", STUDIES.values(), ids=STUDIES.keys())
def test_the_page_states_the_steps_noise_and_sampling_of_each_stage_of_the_plan(
    quick: Callable[..., Path], tmp_path: Path, words: tuple[str, ...]
) -> None:
    run = quick([*SMALL, *words])
    page = results.record(run, command="as it was called", out=tmp_path / "pages").read_text()
    (said,) = (line for line in page.splitlines() if line.startswith("- privacy:"))
    place = run / "sites" / "site-1"
    spent = Ledger(place / "ledger.jsonl", key=load_key(place / "site.key"), head_path=place / "ledger.head").spent()
    (counted,) = spent.plans.values()
    planned = counted.mapping["stages"]
    for stage in planned:
        noise = f"{stage['name']}: {stage['steps']} Gaussian steps of noise multiplier {stage['noise_multiplier']:.4g}"
        rate = "all units" if stage["sample_rate"] == 1 else f"Poisson sampling at rate {stage['sample_rate']:g}"
        assert f"{noise}, {rate}" in said
    assert said.count("noise multiplier") == len(planned)
    assert said.count("Poisson") == sum(stage["sample_rate"] < 1 for stage in planned)


def test_without_privacy_the_page_claims_none(quick: Callable[..., Path], tmp_path: Path) -> None:
    run = quick([*SMALL, "privacy=none", "segmenter.rounds=0"])
    page = results.record(run, command="as it was called", out=tmp_path / "pages").read_text()
    assert "- privacy: none\n" in page


def test_the_page_says_how_many_cases_taught_and_tested_and_how_masks_look() -> None:
    row = {"dice_mean": {"mean": 0.9, "sd": 0.01}, "hd95": {"mean": 4.0, "sd": 0.1}, "n_train": 400, "n_test": 123}
    metrics = {"segmentation": {"tstr": row, "trtr": {"skipped": "not asked for"}}}
    table = results._task(metrics, "segmentation", ("dice_mean", "hd95"), "")
    assert table[0] == "| segmentation of 123 test cases, trained on | cases | dice_mean | hd95 |"
    assert "| synthetic (TSTR) | 400 | 0.900 ± 0.010 | 4.000 ± 0.100 |" in table
    assert {line.count("|") for line in table if line} == {5}
    side = {"synthetic": 0.9, "real": 1.0}
    shape = {
        "parts": 2, "as_usual": side, "areas": {name: {"mean": 0.25, "sd": 0.05} for name in side}, "distance": 0.3,
        "n": {"synthetic": 400}, "distinct": {"synthetic": 65}, "commonest": {"synthetic": 0.22},
    }  # fmt: skip
    (line, _) = results._shapes({"lung": shape})
    assert "90% of the synthetic masks hang together in 2 parts" in line
    assert "65 of the 400 synthetic masks are different" in line

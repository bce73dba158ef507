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

"""A whole study as secure sums, its wire walked: one noise for all sites, and no vector of one site in the clear."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from safetensors.numpy import load_file
from scipy import stats

from fedmedgen.composition import compose
from fedmedgen.errors import FederationError, SettingsError
from fedmedgen.federation import packing, records
from fedmedgen.federation.secure_sum import ring
from fedmedgen.privacy.ledger import spending_in
from fedmedgen.reporting.report import write_report
from simulations.in_process import InProcessGrid

Quick = Callable[..., Path]
WORDS = (
    "federation=secure-sum", "data.size=[16,16]", "segmenter.rounds=0", "generator.with_masks=false",
    "data.mask_classes=[]", "statistics.dimension=8", "prior.phantoms=50", "emission.count=2", "data.sites=4",
)  # fmt: skip
MOMENTS = (*WORDS, "generator=moments", "statistics.share=1")
LOSSY = (*MOMENTS, "federation.threshold=3")
STEPS = (*WORDS, "statistics.share=0.5", "privacy.generator_steps=1", "rounds=2", "privacy.engine=reference")


def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Message, Message]]:
    """Every message of a run and its reply, as they come."""
    found: list[tuple[Message, Message]] = []
    plain = InProcessGrid._answer

    def listen(grid: InProcessGrid, message: Message) -> Message:
        reply = plain(grid, message)
        kept = RecordDict({name: type(record)(dict(record)) for name, record in reply.content.items()})
        found.append((message, Message(kept, reply_to=message)))
        return reply

    monkeypatch.setattr(InProcessGrid, "_answer", listen)
    return found


def vector(run: Path) -> np.ndarray:
    return load_file(run / "statistics.safetensors")["statistics"]


def test_a_study_of_statistics_and_steps_ends_with_both_claims_in_result_and_ledger(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = heard(monkeypatch)
    run = quick(STEPS)
    result = json.loads((run / "result.json").read_text())
    claims = result["privacy"]
    assert (claims["accountant"], claims["secure_sum"]["colluders"]) == ("Renyi (Skellam noise)", 1)
    bits = claims["secure_sum"]["bits_per_number"]
    assert set(bits) == {"statistics", "generator"}
    assert set(bits.values()) <= {16, 24, 32, 40}
    assert claims["epsilon"] <= 10.0 < claims["secure_sum"]["epsilon_alone"]
    spent = spending_in(run / "sites" / "site-1" / "ledger.jsonl", key=None, head_path=None)
    assert (spent.epsilon, spent.alone) == pytest.approx((claims["epsilon"], claims["secure_sum"]["epsilon_alone"]))
    (plan,) = spent.plans.values()
    assert plan.reserved == {"statistics": 1, "generator": 2}
    sheet = json.loads((run / "synthetic" / "datasheet.json").read_text())
    assert "the server and 1 of them may collude" in sheet["trusted"]
    assert sheet["epsilon if all others collude"] == pytest.approx(claims["secure_sum"]["epsilon_alone"], abs=1e-4)
    assert "Skellam" in sheet["mechanism"]
    page = write_report(run).read_text()
    assert "4 sites share one noise. The server and one of the other sites may work together against a site" in page
    assert "trusts itself alone" not in page
    assert "leaves with Skellam noise" in page
    assert (
        f"Masked; whole numbers of {bits['statistics']} bits (statistics), {bits['generator']} bits (generator)" in page
    )
    assert "all sites together add Skellam noise" in page
    kinds = {asked.metadata.message_type for asked, _ in wire}
    assert kinds == {"query", *map(records.of_phase, records.PHASES)}
    for asked, said in wire:
        arrays = {
            name: value
            for record in said.content.array_records.values()
            for name, value in packing.unpacked(record).items()
        }
        assert set(arrays) == ({records.MASKED} if asked.metadata.message_type == "train.mask" else set())
        assert all(value.dtype == np.uint8 for value in arrays.values())
        assert not said.content.metric_records or asked.metadata.message_type == "query"


def test_a_run_of_the_same_seed_gives_the_same_sum_though_its_masks_are_others(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = heard(monkeypatch)
    first, second = quick(MOMENTS), quick(MOMENTS)
    assert np.array_equal(vector(first), vector(second))
    masked = [
        packing.unpacked(said.content.array_records[records.ARRAYS])[records.MASKED]
        for asked, said in wire
        if asked.metadata.message_type == "train.mask"
    ]
    half = len(masked) // 2
    for one, other in zip(masked[:half], masked[half:], strict=True):
        difference = np.bincount(one - other, minlength=256)
        assert stats.chisquare(difference).pvalue > 1e-6


def test_without_masks_the_same_study_is_summed_in_the_clear_and_its_sites_add_all_of_the_noise(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = heard(monkeypatch)
    for masks, alike in (("true", 0.0), ("false", 1.0)):
        wire.clear()
        clear = quick((*MOMENTS, "federation.colluders=3", f"federation.masks={masks}"))
        claims = json.loads((clear / "result.json").read_text())["privacy"]
        width = claims["secure_sum"]["bits_per_number"]["statistics"] // 8
        sent = [
            ring.unpack(packing.unpacked(said.content.array_records[records.ARRAYS])[records.MASKED], width)
            for asked, said in wire
            if asked.metadata.message_type == "train.mask"
        ]
        seen = ring.to_whole(np.sum(sent, axis=0, dtype=sent[0].dtype), width)
        assert np.corrcoef(seen, vector(clear))[0, 1] == pytest.approx(alike, abs=0.4 if masks == "true" else 1e-6)
    assert claims["epsilon"] == pytest.approx(claims["secure_sum"]["epsilon_alone"])
    assert not claims["secure_sum"]["masked"]
    page = write_report(clear).read_text()
    assert "Without masks, since each site adds all of the noise" in page
    assert "which each site adds whole to its own, in the clear" in page
    assert "under masks" not in page


def test_masks_that_hide_a_shared_noise_cant_be_left_out(quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"federation\.colluders.*3, all other sites"):
        quick((*MOMENTS, "federation.masks=false", f"ledger.root={tmp_path}"))
    assert not list(tmp_path.rglob("ledger.jsonl"))
    with pytest.raises(SettingsError, match=r"federation\.masks"):
        compose(["study=demo", "federation.masks=false"])


@pytest.mark.parametrize("word", ["colluders=2", "threshold=3", "attempts=2"])
def test_what_says_nothing_of_a_plain_study_is_refused_there(word: str) -> None:
    with pytest.raises(SettingsError, match=rf"federation\.{word.partition('=')[0]}.*aggregation=secure"):
        compose(["study=demo", f"federation.{word}"])


def lose(monkeypatch: pytest.MonkeyPatch, phase: str, *sites: int) -> None:
    """Some nodes raise in one phase."""
    plain = InProcessGrid._answer

    def answer(grid: InProcessGrid, message: Message) -> Message:
        node = sorted(grid._contexts).index(message.metadata.dst_node_id)
        if node in sites and message.metadata.message_type == records.of_phase(phase):
            from flwr.app import Error

            return Message(Error(2, "lost"), reply_to=message)
        return plain(grid, message)

    monkeypatch.setattr(InProcessGrid, "_answer", answer)


def test_a_site_that_is_lost_is_a_row_and_the_round_goes_on(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, records.MASK, 2)
    run = quick((*MOMENTS, "federation.threshold=3"))
    with (run / "rounds.csv").open() as file:
        rows = {row["site"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}
    assert rows["site-3"] == ("failed", "mask: Flower error 2")
    assert [rows[f"site-{n}"][0] for n in (1, 2, 4)] == ["done"] * 3


def test_below_the_threshold_a_round_ends_without_a_sum_and_is_tried_again_as_often_as_planned(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lose(monkeypatch, records.UNMASK, 0)
    with pytest.raises(FederationError, match="3 of 4 sites answered 'unmask'; 4 must"):
        quick((*MOMENTS, "federation.attempts=2", f"ledger.root={tmp_path}"))
    spent = spending_in(tmp_path / "site-2" / "ledger.jsonl", key=None, head_path=None)
    (plan,) = spent.plans.values()
    assert plan.reserved == {"statistics": 2}  # both attempts are paid, and no sum was learned


@pytest.mark.parametrize("words", [("generator=latent",), ("generator=gan",), ("federation.personal=norms",)])
def test_a_generator_with_a_part_that_no_sum_of_gradients_trains_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"unet, dit, coefficients or vae, all of it shared"):
        compose([*STEPS, *words])


def changed(monkeypatch: pytest.MonkeyPatch, phase: str, change: Callable[[Any], None]) -> None:
    """The first site's words in a phase, changed on their way."""
    plain = InProcessGrid._answer

    def answer(grid: InProcessGrid, message: Message) -> Message:
        reply = plain(grid, message)
        first = message.metadata.dst_node_id == min(grid._contexts)
        if not first or message.metadata.message_type != records.of_phase(phase):
            return reply
        config = dict(reply.content.config_records[records.CONFIG])
        words = json.loads(str(config[records.MASKING]))
        change(words)
        config[records.MASKING] = json.dumps(words)
        return Message(RecordDict({records.CONFIG: ConfigRecord(config)}), reply_to=message)

    monkeypatch.setattr(InProcessGrid, "_answer", answer)


@pytest.mark.parametrize("false", ["zz", 5, None, ["00"]])
def test_an_opening_that_is_no_share_costs_its_site_and_no_more(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, false: object
) -> None:
    changed(monkeypatch, records.UNMASK, lambda words: words.update(seeds=dict.fromkeys(words["seeds"], false)))
    run = quick(LOSSY)
    assert json.loads((run / "result.json").read_text())["status"] == "completed"


def test_a_site_that_deals_to_some_alone_is_lost_and_leaves_no_mask_in_the_sum(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vector(quick(LOSSY))
    changed(monkeypatch, records.SHARE, lambda words: words.popitem())
    run = quick(LOSSY)
    with (run / "rounds.csv").open(newline="") as file:
        told = {row["site"]: row["reason"] for row in csv.DictReader(file)}
    assert "must deal out shares to each other site" in told.pop("site-1")
    assert not any(told.values())
    assert np.abs(vector(run) - whole).max() < 1  # of three sites as of four; a mask left in it is a million times that

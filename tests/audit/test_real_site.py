"""A real site audits by its own policy, ledger and records, whatever the run folder says."""

import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmedgen.audit import copies, site_audit
from fedmedgen.audit.identity import fingerprint
from fedmedgen.audit.site_audit import audit
from fedmedgen.cli.main import main
from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.errors import RunError
from fedmedgen.federation.holdout_record import HoldoutRecord
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit, load_key, spending_in
from fedmedgen.privacy.new_ledger import create_ledger
from simulations.run import simulate

WORDS = ("study=demo", "smoke=true", "evaluation.enabled=false", "data.max_patients=24", "segmenter.rounds=0",
         "audit.canaries=24", "audit.holdout=0.4", "privacy=eps1")  # fmt: skip
COUNT = 40


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(WORDS, out=str(tmp_path_factory.mktemp("finished") / "run"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def policy(run: Path, tmp_path: Path) -> Path:
    """A real site that took part in the run under twice the epsilon that the run folder tells of."""
    settings = compose(WORDS)
    classes, masks = settings.data.classes, settings.data.mask_classes
    drawn = phantoms.draw("chest", COUNT, size=settings.data.size, seed=1, classes=classes, mask_classes=masks)
    cases = tuple(replace(case, site="", patient=None) for case in drawn)
    write_set(CaseSet(cases, classes, masks), tmp_path / "films", datasheet={})
    table = tmp_path / "films" / "labels.csv"
    patients = ["patient", *(f"p{number}" for number in range(COUNT))]
    lines = [f"{line},{name}" for line, name in zip(table.read_text().splitlines(), patients, strict=True)]
    table.write_text("\n".join(lines) + "\n")
    own = SitePolicy(
        site="site-1", folder=str(tmp_path / "state"), patients_declared=COUNT, labelled_declared=COUNT,
        lifetime_epsilon=10.0, lifetime_delta=1e-3, data_root=str(tmp_path / "films"), audit_holdout=0.4,
    )  # fmt: skip
    name = json.loads((run / "result.json").read_text())["run"]
    create_ledger(own.ledger_path, key_path=own.key_path, head_path=own.head_path)
    key = load_key(own.key_path)
    simulated = spending_in(run / "sites" / "site-1" / "ledger.jsonl", key=None, head_path=None)
    first = next(iter(simulated.plans.values()))
    plan = Plan.from_mapping(first.mapping)
    plan = replace(
        plan, stages=tuple(replace(item, noise_multiplier=item.noise_multiplier / 1.6) for item in plan.stages)
    )
    ledger = Ledger(own.ledger_path, key=key, head_path=own.head_path, made=True)
    ledger.open_plan(
        name, plan.digest, plan.to_mapping(), epsilon=plan.epsilon, delta=plan.delta, limit=Limit(10.0, 1e-3)
    )
    for stage, steps in first.reserved.items():
        ledger.reserve(name, plan.digest, stage, steps, f"request-{stage}")
    shutil.copytree(run / "sites" / "site-1" / "canaries", tmp_path / "state" / "canaries")
    HoldoutRecord.of(Path(own.folder), name).note(0.4, key)
    own.write(tmp_path / "policy.yaml")
    return tmp_path / "policy.yaml"


def test_the_claim_is_the_sites_ledgers_and_not_the_servers_word(run: Path, policy: Path) -> None:
    told = json.loads((run / "result.json").read_text())["sites"]["site-1"]["epsilon_run"]
    found = audit(run, "site-1", policy=policy).found
    assert found["claim"]["epsilon"] > 1.3 * told
    assert found["claim"]["delta"] == 1e-5


def test_an_audit_is_tied_to_the_sites_own_ledger_before_any_copy_is_sent(run: Path, policy: Path) -> None:
    own = SitePolicy.read(policy).ledger_path
    shutil.rmtree(run / "sites" / "site-1")  # at a real deployment no site's folder is in what the server hands out
    audit(run, "site-1", policy=policy)
    told = json.loads((run / "audits" / "site-1.json").read_text())["hashes"]
    (run / "sites" / "site-1").mkdir(parents=True)
    shutil.copy(own, run / "sites" / "site-1" / "ledger.jsonl")
    assert told == fingerprint(run, "site-1")
    with (run / "sites" / "site-1" / "ledger.jsonl").open("a") as file:
        file.write("{}\n")
    assert told != fingerprint(run, "site-1")


def test_no_word_of_the_run_folder_makes_private_figures_public(run: Path, policy: Path) -> None:
    assert main(["audit", str(run), "--site", "site-1", "--policy", str(policy), "--real", str(run / "no")]) in (0, 1)
    _change(run / "settings.yaml", lambda found: found["data"].update(public=True, root=""))
    _change(run / "result.json", lambda found: found.update(public_data=True, simulation=True))
    done = audit(run, "site-1", policy=policy)
    told = json.loads(done.told.read_text())
    assert "auc" in done.found["membership"]["loss"]
    assert set(told["membership"]) == set(told["copies"]) == {"kept"}
    assert done.kept.parent == policy.parent / "state"


def test_the_run_folder_sets_neither_confidence_nor_threshold(run: Path, policy: Path) -> None:
    lax = {"audit": {"confidence": 0.9999, "cases": 1}, "gate": {"membership_auc": 1.0, "copies": 1.0}}
    _change(run / "settings.yaml", lambda found: [found[part].update(words) for part, words in lax.items()])
    found = audit(run, "site-1", policy=policy).found
    assert found["canaries"]["confidence"] == 0.95
    assert found["membership"]["loss"]["members"] > 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: (state / "site.key").write_bytes(b"k" * 32), "key"),
        (lambda state: shutil.rmtree(state / "held-out"), "no round of this run was noted"),
    ],
)
def test_where_nobody_can_say_who_took_part_nothing_is_audited(
    run: Path, policy: Path, change: Callable[[Path], Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(policy.parent / "state")
    assert main(["audit", str(run), "--site", "site-1", "--policy", str(policy)]) == 1
    assert said in capsys.readouterr().err


def test_another_runs_ledger_is_no_claim(run: Path, policy: Path) -> None:
    _change(run / "result.json", lambda found: found.update(run="another"))
    with pytest.raises(RunError, match="knows of no run 'another'"):
        audit(run, "site-1", policy=policy)


def test_a_share_that_grew_later_compares_with_nobody_who_took_part(tmp_path: Path) -> None:
    record, key = HoldoutRecord.of(tmp_path, "run"), b"k" * 32
    for share in (0.3, 0.1, 0.5):
        record.note(share, key)
    assert record.share(key) == 0.1


def test_a_key_that_changed_between_rounds_leaves_nobody_to_compare_with(tmp_path: Path) -> None:
    record = HoldoutRecord.of(tmp_path, "run")
    record.note(0.3, b"k" * 32)
    record.note(0.3, b"l" * 32)
    assert record.share(b"k" * 32) == 0.0
    with pytest.raises(RunError, match="isn't the one of this run"):
        record.share(b"l" * 32)


def _change(path: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    is_json = path.suffix == ".json"
    found = json.loads(path.read_text()) if is_json else yaml.safe_load(path.read_text())
    how(found)
    path.write_text(json.dumps(found) if is_json else yaml.safe_dump(found))


def test_what_is_measured_on_patients_is_its_owners_alone_from_the_first_byte(
    run: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(SitePolicy.read(policy).folder)
    seen: dict[str, int] = {}
    draw, write = copies.draw_nearest, site_audit._write

    def drawing(synthetic: CaseSet, members: CaseSet, path: Path) -> None:
        seen[path.name] = stat.S_IMODE(path.stat().st_mode)
        draw(synthetic, members, path)

    def writing(path: Path, found: Any) -> Path:
        if path.name == "audit.json":
            seen[path.name] = stat.S_IMODE(path.stat().st_mode)
        return write(path, found)

    monkeypatch.setattr(copies, "draw_nearest", drawing)
    monkeypatch.setattr(site_audit, "_write", writing)
    (folder / "audit.json").write_text("of an older audit")
    (folder / "audit.json").chmod(0o644)
    audit(run, "site-1", policy=policy)
    assert seen == {"nearest.png": 0o600, "audit.json": 0o600}
    for name in seen:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert (folder / name).stat().st_size > 100

"""A little run folder that may be released: real ledgers and hashes, no training."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedmedgen.audit.identity import fingerprint, folder_hash
from fedmedgen.audit.verdict import verdict
from fedmedgen.data.cases import Case, CaseSet
from fedmedgen.emission.writing import write_set
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.ledger import Ledger, Limit, head_beside, load_or_create_key
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.settings import Settings

RUN, SITES, DELTA, NOISE, STEPS = "small-0-abc", ("site-1", "site-2"), 1e-5, 3.0, 4
CLASSES, MASKS = ("normal", "opacity"), ("background", "lung")


def plan(noise: float = NOISE, steps: int = STEPS, delta: float = DELTA) -> Plan:
    stage = StagePlan(
        name="generator", sample_rate=0.5, noise_multiplier=noise, clip_norm=1.0, steps=steps, denominator_patients=50
    )
    return Plan((stage,), delta)


def write_ledger(run: Path, site: str, agreed: Plan, *, name: str = RUN, counted: float | None = None) -> None:
    """A site's ledger as a run leaves it; `counted`: the epsilon it is entered for, its own if None."""
    folder = run / "sites" / site
    path = folder / "ledger.jsonl"
    ledger = Ledger(path, key=load_or_create_key(folder / "site.key"), head_path=head_beside(path))
    epsilon = agreed.epsilon if counted is None else counted
    ledger.open_plan(
        name, agreed.digest, agreed.to_mapping(), epsilon=epsilon, delta=agreed.delta, limit=Limit(5, 1e-4)
    )
    request = f"{name}-{agreed.digest}"
    for stage in agreed.stages:
        ledger.reserve(name, agreed.digest, stage.name, stage.steps, f"{request}-{stage.name}")
        ledger.complete(f"{request}-{stage.name}", "ab" * 32)


def write_audit(run: Path, site: str, **changes: Any) -> None:
    """The audit a site would write now, with the run's own verdict; `changes` replace parts of it first."""
    result = json.loads((run / "result.json").read_text())
    settings = Settings.from_mapping(yaml.safe_load((run / "settings.yaml").read_text()))
    near = {"nearer_to_train": 0.52, "holdout_baseline": 0.5, "chance": [0.4, 0.6]}
    found: dict[str, Any] = {
        "site": site,
        "run": result["run"],
        "claim": {"epsilon": result["sites"][site]["epsilon_run"], "delta": DELTA, "unit": "patient"},
        "membership": {
            "loss": {
                "auc": 0.53, "tpr_at_1pct_fpr": None, "ci": {"auc": [0.47, 0.58]},
                "members": 100, "holdout": 100,
            }
        },
        "canaries": {
            "count": 100, "kind": "directions", "epsilon_lower_bound": 0.1, "confidence": 0.95, "ceiling": 3.1,
            "guesses": 50, "correct": 27,
        },
        "copies": {"n": 50, "synthetic": 8, **near, "features": near, "pixels": near},
        "hashes": fingerprint(run, site),
        **changes,
    }  # fmt: skip
    if "verdict" not in found:
        found["verdict"] = verdict(found, settings.gate)
    (run / "audits").mkdir(exist_ok=True)
    (run / "audits" / f"{site}.json").write_text(json.dumps(found))


def facts(epsilon: float) -> dict[str, Any]:
    mechanism = f"generator: {STEPS} Gaussian steps of noise multiplier {NOISE}, Poisson sampling at rate 0.5"
    return {
        "study": "small", "run": RUN, "epsilon": round(epsilon, 4), "delta": DELTA, "unit": "patient",
        "mechanism": mechanism,
    }  # fmt: skip


def result(epsilon: float) -> dict[str, Any]:
    site = {
        "patients_declared": 50, "labelled_declared": 50, "epsilon_run": epsilon, "epsilon": epsilon, "delta": DELTA,
        "unit": "patient", "rounds": 2,
    }  # fmt: skip
    near = {"fd": 20.0, "kid": 0.1, "precision": 0.5, "recall": 0.4, "coverage": 0.3}
    return {
        "status": "completed", "reason": "", "study": "small", "run": RUN, "simulation": True, "public_data": True,
        "privacy": {
            "mode": "patient", "epsilon": epsilon, "delta": DELTA, "noise_multiplier": NOISE, "unit": "patient",
            "accountant": "PLD", "sample_rate": 0.5, "clip_norm": 1.0,
        },
        "sites": {name: dict(site) for name in SITES},
        "metrics": {
            "fidelity": near | {"floor": near | {"coverage": 0.97, "fd": 4.0}},
            "classification": {row: {"auc": {"mean": auc, "sd": 0.0}} for row, auc in (("trtr", 0.9), ("tstr", 0.8))},
            "segmentation": {row: {"dice_mean": {"mean": d, "sd": 0.0}} for row, d in (("trtr", 0.9), ("tstr", 0.8))},
        },
        "version": "0.1.0", "commit": "abc1234", "machine": "x86_64",
    }  # fmt: skip


def write_run(run: Path) -> Path:
    draw, epsilon = np.random.default_rng(0), plan().epsilon
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:8] = 1
    cases = [
        Case(image=draw.uniform(-1, 1, (1, 16, 16)).astype(np.float32), mask=mask, name=f"{n}", label=n % 2)
        for n in range(8)
    ]
    write_set(CaseSet(tuple(cases), CLASSES, MASKS), run / "synthetic", datasheet=facts(epsilon))
    settings = Settings.from_mapping(
        {
            "study": "small",
            "data": {"classes": list(CLASSES), "mask_classes": list(MASKS), "size": [16, 16]},
            "privacy": {"mode": "patient", "epsilon": 3.0, "delta": DELTA, "sample_rate": 0.5},
        }
    )
    (run / "settings.yaml").write_text(yaml.safe_dump(settings.to_mapping()))
    whole = result(epsilon)
    whole["metrics"]["set"] = folder_hash(run / "synthetic")
    (run / "result.json").write_text(json.dumps(whole))
    (run / "generator").mkdir()
    (run / "generator" / "model_index.json").write_text("{}")
    (run / "generator" / "weights.safetensors").write_bytes(bytes(range(64)))
    card = "\n".join(f"- {name}: {value}" for name, value in facts(epsilon).items())
    (run / "generator" / "README.md").write_text(f"# Radiograph generator\n\n{card}\n")
    for site in SITES:
        SitePolicy(
            site=site, folder=".", patients_declared=50, labelled_declared=50, lifetime_epsilon=5.0,
            lifetime_delta=1e-4, simulation=True,
        ).write(run / "sites" / site / "policy.yaml")  # fmt: skip
        write_ledger(run, site, plan())
        write_audit(run, site)
    return run


@dataclass(frozen=True)
class SmallRun:
    """A copy to spoil."""

    folder: Path

    def at(self, place: str) -> Path:
        return self.folder / place

    def change(self, place: str, **values: Any) -> None:
        """Set values of a JSON or YAML file; a dotted path is spelled with two underscores."""
        path = self.at(place)
        is_json = path.suffix == ".json"
        found = json.loads(path.read_text()) if is_json else yaml.safe_load(path.read_text())
        for name, value in values.items():
            *groups, last = name.split("__")
            inner = found
            for group in groups:
                inner = inner[group.replace("site_", "site-")]
            inner[last] = value
        path.write_text(json.dumps(found) if is_json else yaml.safe_dump(found))

    def edit(self, place: str, old: str, new: str) -> None:
        text = self.at(place).read_text()
        assert old in text
        self.at(place).write_text(text.replace(old, new))

    def audit_anew(self, **changes: Any) -> None:
        for site in SITES:
            write_audit(self.folder, site, **changes)

    def ledger_anew(self, *, name: str = RUN, counted: float | None = None, **mechanism: Any) -> None:
        """Site 1's ledger thrown away, and another written; audited anew."""
        for file in ("ledger.jsonl", "ledger.head"):
            self.at(f"sites/site-1/{file}").unlink()
        write_ledger(self.folder, "site-1", plan(**mechanism), name=name, counted=counted)
        self.audit_anew()

    def ledgers_of(self, agreed: Plan) -> None:
        """Every site's ledger thrown away, and one of this plan written, which is told as the run's; audited anew."""
        for site in SITES:
            for file in ("ledger.jsonl", "ledger.head"):
                self.at(f"sites/{site}/{file}").unlink()
            write_ledger(self.folder, site, agreed)
            self.change("result.json", **{f"sites__{site.replace('-', '_')}__epsilon_run": agreed.epsilon})
        self.change("result.json", privacy__epsilon=agreed.epsilon)
        self.change("synthetic/datasheet.json", epsilon=round(agreed.epsilon, 4))
        self.edit("generator/README.md", f"- epsilon: {round(plan().epsilon, 4)}", f"- epsilon: {agreed.epsilon:.4f}")
        self.audit_anew()

    def spend_again(self, *, name: str, **mechanism: Any) -> None:
        """Another plan in site 1's ledger; audited anew."""
        write_ledger(self.folder, "site-1", plan(**mechanism), name=name)
        self.audit_anew()

    def spend_again_unaudited(self) -> None:
        write_ledger(self.folder, "site-1", plan(steps=1), name="other")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def small(whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallRun:
    """A copy to spoil; keys are made in the test's own folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FEDMEDGEN_KEY", raising=False)
    return SmallRun(Path(shutil.copytree(whole_run, tmp_path / "run")))

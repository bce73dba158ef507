"""result.json: how a run ended, what each site spent, what was measured."""

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedmedgen import __version__
from fedmedgen.data.summary import table
from fedmedgen.errors import FedmedgenError
from fedmedgen.federation import plan, records
from fedmedgen.privacy.ledger import Ledger, load_key
from server import membership
from server.rounds import Rounds
from server.strategy import Member

if TYPE_CHECKING:
    from server.stages import Study

ACCOUNTANT = "PLD (dp-accounting)"
SHARED_ACCOUNTANT = "Renyi (Skellam noise)"
COMMIT = "FEDMEDGEN_COMMIT"


def assemble(
    study: "Study", rounds: Rounds | None, metrics: dict[str, Any], *, status: str, reason: str
) -> dict[str, Any]:
    """Everything a person or a script asks of a run, as plain words and numbers."""
    settings = study.settings
    rows = rounds.rows if rounds else []
    everyone = rounds.everyone if rounds else []
    lost = {row["site"] for row in rows if row["status"] != records.DONE}
    lost |= {member.site for member in everyone if rounds and member not in rounds.members}
    return {
        "status": status,
        "reason": reason,
        "study": settings.study,
        "run": study.store.run,
        "seed": settings.seed,
        "backend": settings.backend,
        "rounds": len({(row["stage"], row["round"]) for row in rows}),
        "seconds": round(rounds.seconds, 1) if rounds else 0.0,
        "stage_seconds": study.stage_seconds,
        "bytes_up": sum(row["bytes_up"] for row in rows),
        "bytes_down": sum(row["bytes_down"] for row in rows),
        "parameters": study.parameters,
        "simulation": rounds.simulation if rounds else settings.simulated,
        "public_data": settings.data.public or (settings.simulated and not settings.data.root),
        "privacy": _privacy(study, rounds),
        "sites": {member.site: _site(study, rounds, member) for member in everyone} if rounds else {},
        "lost_sites": {site: _last_reason(rows, site) for site in sorted(lost)},
        "survivors": [member.site for member in everyone if member.site not in lost],
        "data": table(study.parts) if study.parts else [],
        "test_cases": len(study.test) if study.test else 0,
        "rejected": [vars(item) for item in study.loaded.rejected] if study.loaded else [],
        "metrics": metrics,
        "cores": os.cpu_count(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "commit": commit(),
        "version": __version__,
    }


def _privacy(study: "Study", rounds: Rounds | None) -> dict[str, Any]:
    privacy = study.settings.privacy
    if not study.settings.private:
        return {"mode": "none", "epsilon": None}
    spent = [_epsilon_run(study, rounds, member.site) or 0.0 for member in rounds.everyone] if rounds else []
    return {
        "mode": privacy.mode,
        "epsilon": max(spent, default=0.0),  # computed from what was run, at the site that spent most
        "epsilon_target": privacy.epsilon,
        "delta": privacy.delta,
        "noise_multiplier": plan.of_rounds(rounds.noise) or None if rounds else None,
        "statistics_noise_multiplier": rounds.noise.get(plan.STATISTICS) if rounds else None,
        "statistics_rounds": study.settings.statistics.rounds if study.settings.statistics.share else 0,
        "sample_rate": privacy.sample_rate,
        "clip_norm": privacy.clip_norm,
        "noise_draws": privacy.noise_draws,
        "engine": privacy.engine,
        **_shared(rounds),
        "unit": membership.unit_of(rounds.everyone if rounds else ()),
    }


def _shared(rounds: Rounds | None) -> dict[str, Any]:
    """How epsilon was reckoned; where sites share their noise, whom it holds against, and what holds beyond."""
    if rounds is None or (agreed := rounds.agreed) is None or agreed.shared is None:
        return {"accountant": ACCOUNTANT}
    bits = {row["stage"]: int(row["bits_per_number"]) for row in rounds.rows if row.get("bits_per_number")}
    masked = rounds.store.settings.federation.masks
    found = {**vars(agreed.shared), "masked": masked, "epsilon_alone": agreed.epsilon_alone, "bits_per_number": bits}
    return {"accountant": SHARED_ACCOUNTANT, "secure_sum": found}


def _site(study: "Study", rounds: Rounds, member: Member) -> dict[str, Any]:
    site = member.site
    ledger = _ledger_folder(study) / site / "ledger.jsonl"
    return {
        "patients_declared": member.patients,
        "labelled_declared": member.labelled,
        "epsilon_run": _epsilon_run(study, rounds, site),
        "epsilon": _lifetime(ledger) if study.settings.private and study.settings.simulated else None,
        "delta": study.settings.privacy.delta if study.settings.private else None,
        "unit": member.unit,
        "rounds": len({(row["stage"], row["round"]) for row in rounds.rows
                       if row["site"] == site and row["status"] == records.DONE}),
        "ledger": f"sites/{site}/ledger.jsonl" if ledger.is_file() else None,
    }  # fmt: skip


def _epsilon_run(study: "Study", rounds: Rounds, site: str) -> float | None:
    """Epsilon of every round that was asked of the site: one that failed may have been spent.

    A real site's ledger counts the whole plan once it is opened, and may have been asked what a killed server forgot.
    """
    if rounds.agreed is None:
        return None
    asked = {(row["stage"], row["round"]) for row in rounds.rows if row["site"] == site}
    if asked and not study.settings.simulated:
        return rounds.agreed.epsilon
    steps = {
        stage.name: stage.steps * stage.attempts * sum(name == stage.name for name, _ in asked)
        for stage in plan.stages(study.settings)
    }
    return rounds.agreed.epsilon_after(steps)


def _ledger_folder(study: "Study") -> Path:
    return Path(study.settings.ledger.root) if study.settings.ledger.root else study.store.folder / "sites"


def _lifetime(ledger: Path) -> float | None:
    try:
        key = load_key(ledger.with_name("site.key"))
        return Ledger(ledger, key=key, head_path=ledger.with_name("ledger.head")).spent().epsilon
    except (FedmedgenError, OSError):
        return None


def _last_reason(rows: list[dict[str, Any]], site: str) -> str:
    bad = [row for row in rows if row["site"] == site and row["status"] != records.DONE][-1:]
    if not bad:
        return "away when the run went on"
    return f"{bad[0]['stage']} round {bad[0]['round']}: {bad[0]['status']} ({bad[0]['reason']})"


def commit() -> str:
    """The commit of the code that ran: named by who sent the bundle, or of the git checkout it runs from."""
    if named := os.environ.get(COMMIT):
        return named
    try:
        words = ["git", "describe", "--always", "--dirty"]
        found = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""

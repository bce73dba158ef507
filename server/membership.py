"""Who has taken part in a run, there or away: none is forgotten when it goes on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from server.run_store import RunStore
from server.strategy import Member


def remembered(store: RunStore, there: Sequence[Member]) -> tuple[list[Member], list[Member]]:
    """The members who are there, and who took part before; everyone is written down.

    What a site once said weaker than now, of its unit or its seed, stays said: those rounds are in the model.
    """
    before = {member.site: member for member in (Member(**entry) for entry in store.members())}
    now = [_as_weak_as(before.get(member.site, member), member) for member in there]
    known = before | {member.site: member for member in now}
    store.write_members([asdict(known[site]) for site in sorted(known)])
    return now, list(before.values())


def everyone(there: Sequence[Member], before: Sequence[Member], rows: Iterable[Mapping[str, Any]]) -> list[Member]:
    """All sites whose patients may be in the model: those that are there, and those away that were ever asked."""
    present, asked = {member.site for member in there}, {row["site"] for row in rows}
    away = [member for member in before if member.site in asked - present]
    return sorted([*there, *away], key=lambda member: member.site)


def unit_of(members: Iterable[Member]) -> str:
    """What a claim about them protects: the weakest that any site has said."""
    return "image" if any(member.unit == "image" for member in members) else "patient"


def _as_weak_as(before: Member, now: Member) -> Member:
    unit = "image" if "image" in (before.unit, now.unit) else now.unit
    return replace(now, unit=unit, simulation=before.simulation or now.simulation)

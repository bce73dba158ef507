"""Who takes part: the nodes that answer with a site's name and public counts, within a bounded wait."""

import json
import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedmedgen.errors import FederationError, ReplyError
from fedmedgen.federation import messages, records
from fedmedgen.federation.egress import Reply
from fedmedgen.settings import Settings
from server.strategy import Member

logger = logging.getLogger(__name__)

MOST_PATIENTS = 10_000_000  # a site that declares more would outweigh all others
SIMULATION_SECONDS = 30.0  # a simulation's nodes are there from its start


def known_nodes(file: Path) -> dict[int, str]:
    """Which node is which site, as the server registered their keys."""
    return {int(entry["node"]): name for name, entry in json.loads(file.read_text()).items()}


def join(grid: Grid, settings: Settings, *, sites: int, known: Mapping[int, str] | None = None) -> list[Member]:
    """The members, in the order of their names; nodes without a site stay idle.

    Whoever says what can't be used, a name that another node says too, or one that isn't its own by `known`, is left
    out.

    **Raises** `FederationError` where fewer than `sites` are there in time.
    """
    patience = min(settings.federation.join_seconds, SIMULATION_SECONDS if settings.simulated else math.inf)
    members, refused = _introductions(grid, settings, _wait_for_nodes(grid, sites, patience), known)
    if len(members) < sites:
        said = f" ({', '.join(sorted(refused))})" if refused else ""
        raise FederationError(f"expected {sites} sites; {len(members)} joined{said}")
    return [members[name] for name in sorted(members)]


def newcomers(
    grid: Grid, settings: Settings, members: Sequence[Member], known: Mapping[int, str] | None
) -> list[Member]:
    """Sites that weren't there when the study began, or went on; one whose name is a member's stays out."""
    nodes, names = {member.node for member in members}, {member.site for member in members}
    absent = sorted(set(grid.get_node_ids()) - nodes)
    found, refused = _introductions(grid, settings, absent, known) if absent else ({}, [])
    for words in refused:
        logger.warning("a site that came is left out: %s", words)
    return [found[name] for name in sorted(found) if name not in names]


def _introductions(
    grid: Grid, settings: Settings, nodes: Sequence[int], known: Mapping[int, str] | None
) -> tuple[dict[str, Member], list[str]]:
    """The sites among nodes by name, and why others are left out."""
    words = ConfigRecord({records.SETTINGS: messages.pack_settings(settings)})
    asked = [
        Message(RecordDict({records.CONFIG: words}), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes
    ]
    members: dict[str, Member] = {}
    refused: list[str] = []
    claimed: set[str] = set()
    for reply in grid.send_and_receive(asked, timeout=settings.federation.round_seconds):
        member = _member(reply, refused)
        if member is None:
            continue
        if known is not None and known.get(member.node) != member.site:
            refused.append(f"node {member.node} says that it is {member.site}; its key is of {known.get(member.node)}")
        elif member.site in claimed:
            members.pop(member.site, None)
            refused.append(f"two nodes say that they are {member.site}: give each site its own name")
        else:
            claimed.add(member.site)
            members[member.site] = member
    return members, refused


def _member(reply: Message, refused: list[str]) -> Member | None:
    if reply.has_error():
        refused.append(f"node {reply.metadata.src_node_id}: Flower error {reply.error.code}")
        return None
    try:
        return _introduced(messages.unpack_reply(reply.content), reply.metadata.src_node_id, refused)
    except Exception as error:  # a site may send anything
        refused.append(f"node {reply.metadata.src_node_id}: malformed reply ({str(error)[:200]})")
        return None


def _introduced(said: Reply, node: int, refused: list[str]) -> Member | None:
    status = said.config[records.STATUS]
    if status == records.IDLE:
        return None
    if status != records.DONE:
        refused.append(f"{said.config.get(records.SITE) or 'a node'}: {status}")
        return None
    if said.arrays:
        raise ReplyError("an introduction holds no arrays")
    return Member(
        node=node,
        site=_name(said.config[records.SITE]),
        unit=said.config[records.UNIT],
        patients=_count(said.metrics[records.PATIENTS], least=1),
        labelled=_count(said.metrics[records.LABELLED], least=0),
        simulation=said.config.get(records.SIMULATION) == "yes",
    )


def _name(site: str) -> str:
    if not re.fullmatch(records.NAME_OF_A_SITE, site):
        raise ReplyError(f"a site's name must be of the form {records.NAME_OF_A_SITE}; got {site[:80]!r}")
    return site


def _count(figure: float, *, least: int) -> int:
    if not (least <= figure <= MOST_PATIENTS and figure == int(figure)):
        raise ReplyError(f"a declared figure must be whole, from {least} to {MOST_PATIENTS}; got {figure}")
    return int(figure)


def _wait_for_nodes(grid: Grid, wanted: int, seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() > end:
            raise FederationError(
                f"expected {wanted} nodes within {seconds:g} s; {len(nodes)} are there: start more (in a simulation "
                f'--federation-config "num-supernodes={wanted}"), or ask for fewer sites'
            )
        time.sleep(0.5)
    return nodes

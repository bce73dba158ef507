"""Who takes part: the nodes that answer with a site's name and public counts, within a bounded wait."""

import math
import time

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedmedgen.errors import FederationError, ReplyError
from fedmedgen.federation import messages, records
from fedmedgen.federation.egress import Reply
from fedmedgen.settings import Settings
from server.strategy import Member

SIMULATION_SECONDS = 30.0  # a simulation's nodes are there from its start


def join(grid: Grid, settings: Settings, *, sites: int) -> list[Member]:
    """The members, in the order of their names; nodes without a site stay idle.

    **Raises** `FederationError` where fewer than `sites` nodes are there in time, or two nodes claim one site.
    """
    patience = min(settings.federation.join_seconds, SIMULATION_SECONDS if settings.simulated else math.inf)
    nodes = _wait_for_nodes(grid, sites, patience)
    words = ConfigRecord({records.SETTINGS: messages.pack_settings(settings)})
    asked = [
        Message(RecordDict({records.CONFIG: words}), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes
    ]
    members: dict[str, Member] = {}
    refused: list[str] = []
    for reply in grid.send_and_receive(asked, timeout=settings.federation.round_seconds):
        member = _member(reply, refused)
        if member is None:
            continue
        if member.site in members:
            raise FederationError(f"two nodes say that they are {member.site}: give each site its own name")
        members[member.site] = member
    if len(members) < sites:
        said = f" ({', '.join(sorted(refused))})" if refused else ""
        raise FederationError(f"expected {sites} sites; {len(members)} joined{said}")
    return [members[name] for name in sorted(members)]


def _member(reply: Message, refused: list[str]) -> Member | None:
    if reply.has_error():
        refused.append(f"node {reply.metadata.src_node_id}: Flower error {reply.error.code}")
        return None
    try:
        return _introduced(messages.unpack_reply(reply.content), reply.metadata.src_node_id, refused)
    except (ReplyError, KeyError, ValueError) as error:
        refused.append(f"node {reply.metadata.src_node_id}: malformed reply ({error})")
        return None


def _introduced(said: Reply, node: int, refused: list[str]) -> Member | None:
    status = said.config[records.STATUS]
    if status == records.IDLE:
        return None
    if status != records.DONE:
        refused.append(f"{said.config.get(records.SITE) or 'a node'}: {status}")
        return None
    return Member(
        node=node,
        site=said.config[records.SITE],
        unit=said.config[records.UNIT],
        patients=int(said.metrics[records.PATIENTS]),
        labelled=int(said.metrics[records.LABELLED]),
        simulation=said.config.get(records.SIMULATION) == "yes",
    )


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

"""The same ServerApp and ClientApp in one process: a small Grid instead of Flower's SuperLink and Ray.

The only file that touches Flower's private `TaskIdentity`: a Message can't be made without it.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.app import app as server_app
from sites.app import app as client_app
from sites.opening import IN_PROCESS

RUN_ID = 1
SERVER_NODE = 1
CLIENT_RAISED = 2

logger = logging.getLogger(__name__)


class InProcessGrid(Grid):
    """Nodes that run a ClientApp here and now, one after the other."""

    def __init__(self, node_configs: dict[int, dict[str, Any]], run_config: dict[str, Any]) -> None:
        self._contexts = {
            node: Context(RUN_ID, node, dict(config), RecordDict(), dict(run_config))
            for node, config in node_configs.items()
        }
        self._run = Run.create_empty(RUN_ID)
        self._asked: dict[str, Message] = {}  # answered when the answer is pulled: one at a time
        self._sent = 0

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            self._sent += 1
            names.append(str(self._sent))
            self._asked[names[-1]] = message
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._answer(self._asked.pop(name)) for name in message_ids if name in self._asked]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        try:
            return client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            logger.exception("node %s raised", message.metadata.dst_node_id)
            return Message(Error(CLIENT_RAISED, type(error).__name__), reply_to=message)


def run_in_process(run_config: dict[str, Any], node_configs: dict[int, dict[str, Any]]) -> None:
    """Run the study to its end in this process; what stops the server is raised here."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with _simulated(), _identity():
        grid = InProcessGrid(node_configs, run_config)
        server_app(grid, Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(run_config)))


@contextmanager
def _simulated() -> Iterator[None]:
    """Nodes of this process are simulated ones, as long as the study runs."""
    before = os.environ.get(IN_PROCESS, "")
    os.environ[IN_PROCESS] = "1"
    try:
        yield
    finally:
        os.environ[IN_PROCESS] = before


@contextmanager
def _identity() -> Iterator[None]:
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, SERVER_NODE
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before

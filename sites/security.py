"""What a real site writes down of each request: who asked for what, what was refused, what was sent."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message

from fedmedgen.deployment import security_log
from fedmedgen.deployment.guard import BUNDLE
from fedmedgen.federation import messages, packing, records
from fedmedgen.federation.policy import SitePolicy
from sites.opening import POLICY, in_simulation

LONGEST_WORD = 200  # of a request's own words, which are anybody's


class SecurityLog:
    """The site's security log; of a node without a policy of its own nothing is written."""

    def __init__(self, context: Context) -> None:
        self.folder: Path | None = None
        if POLICY in context.node_config and not in_simulation():
            with suppress(Exception):  # by a policy that can't be read every request is refused
                self.folder = Path(SitePolicy.read(Path(str(context.node_config[POLICY]))).folder)

    def asked(self, message: Message) -> None:
        """Who asked for what, before anything is done.

        **Raises** `OSError` where it can't be written down: then nothing is done.
        """
        config = message.content.config_records.get(records.CONFIG, ConfigRecord())
        words = {key: str(config[key])[:LONGEST_WORD] for key in (records.RUN, records.STAGE) if key in config}
        known = message.metadata
        self._note(
            "asked", what=str(known.message_type)[:LONGEST_WORD], flower_run=known.run_id, node=known.src_node_id,
            bundle=os.environ.get(BUNDLE, ""), **words,
        )  # fmt: skip

    def refused(self, error: Exception) -> None:
        """Why a request was not carried out; the reason stays here."""
        self._note("refused", what="request", why=f"{type(error).__name__}: {error}")

    def sent(self, message: Message, answer: Message) -> None:
        """What leaves: every word, of arrays their number, size and hash, and the request's hash as in the ledger."""
        content = answer.content
        words: dict[str, Any] = {}
        for found in (content.config_records, content.metric_records):
            words |= {key: value for name in found for key, value in found[name].items()}
        arrays = [array for _, found in sorted(content.array_records.items()) for _, array in sorted(found.items())]
        number = sum(len(packing.unpacked(found)) for found in content.array_records.values())
        digest = hashlib.sha256(json.dumps(words, sort_keys=True, default=str).encode())
        for array in arrays:
            digest.update(array.data)
        size = sum(len(array.data) for array in arrays)
        asked = {"request": messages.unpack_request(message.content).digest} if arrays else {}
        self._note("sent", words=words, arrays=number, bytes=size, sha256=digest.hexdigest(), **asked)

    def _note(self, event: str, **words: object) -> None:
        if self.folder is not None:
            security_log.note(self.folder, event, **words)

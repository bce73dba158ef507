"""Requests and replies as Flower records, and back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedmedgen.errors import ReplyError
from fedmedgen.federation import records
from fedmedgen.federation.egress import Arrays, Reply
from fedmedgen.settings import Settings


@dataclass(frozen=True)
class Request:
    """One round asked of a site."""

    run: str
    stage: str
    round: int
    settings: Settings
    noise_multiplier: float
    proximal_mu: float
    arrays: Arrays

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides the reply; the backend that carries it and its folders are left out."""
        mapping = deciding(self.settings)
        head = [self.run, self.stage, self.round, self.noise_multiplier, self.proximal_mu, mapping]
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for name in sorted(self.arrays):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()


def deciding(settings: Settings) -> dict[str, Any]:
    """The settings that decide what sites send: not where files are, who carries messages, or what comes after."""
    mapping = settings.to_mapping()
    for key in ("backend", "out", "ledger", "runtime", "emission", "evaluation"):
        mapping.pop(key)
    mapping["data"]["root"] = Path(settings.data.root).name
    return mapping


def pack_arrays(arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def unpack_arrays(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def request_config(run: str, stage: str, settings: Settings, noise_multiplier: float) -> ConfigRecord:
    """What goes with the arrays of every round of a stage; the strategy adds the round."""
    return ConfigRecord(
        {
            records.RUN: run,
            records.STAGE: stage,
            records.SETTINGS: json.dumps(settings.to_mapping(), sort_keys=True),
            records.NOISE_MULTIPLIER: float(noise_multiplier),
        }
    )


def unpack_settings(content: RecordDict) -> Settings:
    return Settings.from_mapping(json.loads(str(content.config_records[records.CONFIG][records.SETTINGS])))


def unpack_request(content: RecordDict) -> Request:
    config = content.config_records[records.CONFIG]
    return Request(
        run=str(config[records.RUN]),
        stage=str(config[records.STAGE]),
        round=int(str(config[records.SERVER_ROUND])),
        settings=unpack_settings(content),
        noise_multiplier=float(str(config[records.NOISE_MULTIPLIER])),
        proximal_mu=float(str(config.get(records.PROXIMAL_MU, 0.0))),
        arrays=unpack_arrays(content.array_records[records.ARRAYS]),
    )


def pack_reply(reply: Reply) -> RecordDict:
    """A reply that has passed the egress check, as the records that travel."""
    parts: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {records.CONFIG: ConfigRecord(dict(reply.config))}
    if reply.metrics:
        parts[records.METRICS] = MetricRecord(dict(reply.metrics))
    if reply.arrays:
        parts[records.ARRAYS] = pack_arrays(reply.arrays)
    return RecordDict(parts)


def unpack_reply(content: RecordDict) -> Reply:
    """**Raises** `ReplyError` where the status is missing or unknown."""
    config = {key: str(value) for key, value in content.config_records.get(records.CONFIG, ConfigRecord()).items()}
    if config.get(records.STATUS) not in records.STATUSES:
        raise ReplyError(f"a reply must carry a known status; got {config.get(records.STATUS)!r}")
    metrics = content.metric_records.get(records.METRICS, MetricRecord())
    arrays = content.array_records.get(records.ARRAYS, ArrayRecord())
    return Reply(
        config=config,
        metrics={key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))},
        arrays=unpack_arrays(arrays),
    )


def size_of(content: RecordDict) -> int:
    """Bytes of arrays and of text and numbers in a message, without Flower's framing."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    words = sum(
        len(str(key)) + len(str(value)) for record in content.config_records.values() for key, value in record.items()
    )
    return arrays + words + sum(8 * len(record) for record in content.metric_records.values())

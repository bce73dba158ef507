"""Requests and replies as Flower records, and back."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedmedgen.errors import EgressError, FedmedgenError, PolicyError, ReplyError, SettingsError
from fedmedgen.federation import packing, records
from fedmedgen.federation.egress import Arrays, Checked, Reply
from fedmedgen.federation.policy import LARGEST_RATE, for_real_sites
from fedmedgen.settings import Settings

LONGEST_SETTINGS = 65_536  # characters of JSON
LONGEST_NAME = 200


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
    statistics_noise: float = 0.0  # of the statistics stage, which every request names: it is part of the plan
    public: str = ""  # the hash of the public arrays that the round rests on; empty: it needs none
    public_arrays: Arrays = field(default_factory=dict)  # where they came along, by their names in the network

    @property
    def digest(self) -> str:
        """SHA-256 over everything that decides the reply; the backend that carries it and its folders are left out.

        Public arrays stand in it by their hash, whether they came along or not.
        """
        mapping = deciding(self.settings)
        noise = [self.noise_multiplier, self.statistics_noise]
        head = [self.run, self.stage, self.round, *noise, self.proximal_mu, mapping, self.public]
        return digest_of(self.arrays, json.dumps(head, sort_keys=True))


def deciding(settings: Settings) -> dict[str, Any]:
    """The settings that decide what sites send: not where files are, who carries messages, or what comes after."""
    mapping = settings.to_mapping()
    for key in ("backend", "out", "ledger", "runtime", "emission", "evaluation", "gate"):
        mapping.pop(key)
    if not settings.federation.shared:  # then these say nothing
        for key in ("aggregation", "colluders", "masks", "threshold", "attempts"):
            mapping["federation"].pop(key)
    if not settings.data.largest_sites:
        mapping["data"].pop("largest_sites")
    mapping["data"]["root"] = Path(settings.data.root).name
    mapping["prior"]["roots"] = [Path(root).name for root in settings.prior.roots]
    return mapping


def digest_of(arrays: Mapping[str, NDArray[np.float32]], words: str = "") -> str:
    """SHA-256 over words and arrays, with their names, types and shapes."""
    digest = hashlib.sha256(words.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def pack_arrays(arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """As they travel."""
    return packing.packed(arrays)


def as_flowers(arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """As Flower's strategies have a model: an array for each name."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def as_flowers_one_by_one(arrays: Arrays) -> ArrayRecord:
    """The same in the order of their names, each let go once it is taken over; `arrays` is empty then."""
    return ArrayRecord({name: Array(np.ascontiguousarray(arrays.pop(name))) for name in sorted(arrays)})


def unpack_arrays(record: ArrayRecord) -> Arrays:
    """All arrays of a record, as it travelled or as Flower has it."""
    return {name: np.array(value) for name, value in packing.unpacked(record).items()}


def request_config(
    run: str, stage: str, settings: Settings, noise_multiplier: float, statistics_noise: float = 0.0
) -> ConfigRecord:
    """What goes with the arrays of every round of a stage; the strategy adds the round."""
    return ConfigRecord(
        {
            records.RUN: run,
            records.STAGE: stage,
            records.SETTINGS: pack_settings(settings),
            records.NOISE_MULTIPLIER: float(noise_multiplier),
            records.STATISTICS_NOISE: float(statistics_noise),
        }
    )


def pack_settings(settings: Settings) -> str:
    """The settings as they travel: to real sites, without what only a simulation may set."""
    told = settings if settings.simulated else for_real_sites(settings)
    return json.dumps(told.to_mapping(), sort_keys=True)


def check_asked(content: RecordDict, message_type: str) -> None:
    """**Raises** `PolicyError` naming what a request of that type may not hold, or lacks."""
    listed = records.INCOMING.get(message_type)
    if listed is None:
        raise PolicyError(f"a site answers {' and '.join(records.INCOMING)}; got a message of type {message_type!r}")
    if odd := _unlisted(content, listed, arrays=message_type in records.WITH_ARRAYS):
        raise PolicyError(f"a request may not hold {odd}: federation.records lists what a server may ask")
    given = content.config_records.get(records.CONFIG, ConfigRecord())
    optional = (*records.OPTIONAL, *((records.SETTINGS,) if message_type in records.WITHOUT_SETTINGS else ()))
    lacking = [item.key for item in listed if item.key not in given and item.key not in optional]
    if lacking or (message_type in records.WITH_ARRAYS and records.ARRAYS not in content.array_records):
        raise PolicyError(f"the request lacks {', '.join(lacking) or records.ARRAYS}")


def check_answer(content: RecordDict) -> None:
    """**Raises** `EgressError` naming a record or key that may not leave a site, whoever put it there."""
    if odd := _unlisted(content, records.OUTGOING, arrays=True):
        raise EgressError(f"a reply may not hold {odd}: federation.records lists what may leave")


def _unlisted(content: RecordDict, listed: Sequence[records.Listed], *, arrays: bool) -> str:
    """What a message holds beyond the list, in words; empty if nothing."""
    known = {(item.record, item.key): item.kind for item in listed}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            if not (arrays and name == records.ARRAYS):
                return f"arrays under {name!r}"
            if record and not packing.is_packed(record):
                return f"arrays that aren't packed as one ({', '.join(record)[:80]})"
            continue
        if name != (records.CONFIG if isinstance(record, ConfigRecord) else records.METRICS):
            return f"the record {name!r}"
        for key, value in record.items():
            kind = known.get((name, key))
            if kind is None:
                return f"the key {key!r} in {name!r}"
            if type(value) is not kind:
                return f"a {type(value).__name__} under {key!r}, which is of type {kind.__name__}"
    return ""


def unpack_settings(content: RecordDict) -> Settings:
    """**Raises** `SettingsError` for text that is too long, no JSON, or no settings."""
    text = str(content.config_records[records.CONFIG][records.SETTINGS])
    if len(text) > LONGEST_SETTINGS:
        raise SettingsError(f"settings must be at most {LONGEST_SETTINGS} characters of JSON; got {len(text)}")
    try:
        return Settings.from_mapping(json.loads(text))
    except FedmedgenError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise SettingsError(f"settings must be a JSON object of settings; reading them gave: {error}") from error


def unpack_request(content: RecordDict) -> Request:
    """**Raises** `PolicyError` or `SettingsError` for what is no request."""
    config = content.config_records[records.CONFIG]
    run, stage = str(config[records.RUN]), str(config[records.STAGE])
    noise, first = (float(str(config[key])) for key in (records.NOISE_MULTIPLIER, records.STATISTICS_NOISE))
    number, pull = int(str(config[records.SERVER_ROUND])), float(str(config.get(records.PROXIMAL_MU, 0.0)))
    public = str(config.get(records.PUBLIC, ""))
    if not (0 < len(run) <= LONGEST_NAME and run.isprintable()):
        raise PolicyError(f"the run's name must be 1 to {LONGEST_NAME} printable characters; got {run[:40]!r}")
    if not 0 <= pull <= LARGEST_RATE:
        raise PolicyError(f"proximal-mu must be from 0 to {LARGEST_RATE:g}; got {pull}")
    try:
        arrays = unpack_arrays(content.array_records.get(records.ARRAYS, ArrayRecord()))
        if odd := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{odd[0]} is no array")
    except Exception as error:
        raise PolicyError(f"the request's arrays can't be read: {error}") from error
    along = {name: arrays.pop(name) for name in list(arrays) if name.startswith(records.PUBLIC_PREFIX)}
    along = {name.removeprefix(records.PUBLIC_PREFIX): value for name, value in along.items()}
    if not re.fullmatch("|[0-9a-f]{64}", public) or (along and not public):
        raise PolicyError(f"public arrays must be named by their SHA-256; the request says {public[:80]!r}")
    return Request(run, stage, number, unpack_settings(content), noise, pull, arrays, first, public, along)


def pack_reply(reply: Checked) -> RecordDict:
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
        arrays=packing.unpacked(arrays),
    )


def let_go(message: Message) -> None:
    """Free a message's arrays now: Flower's records hold on to each other until the interpreter looks for cycles."""
    if message.has_content():
        for record in message.content.array_records.values():
            record.clear()


def size_of(content: RecordDict) -> int:
    """Bytes of arrays and of text and numbers in a message, without Flower's framing."""
    return sum(map(_size, content.values()))


def _size(record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
    if isinstance(record, ArrayRecord):
        return sum(len(array.data) for array in record.values())
    if isinstance(record, ConfigRecord):
        return sum(len(str(key)) + len(str(value)) for key, value in record.items())
    return 8 * len(record)

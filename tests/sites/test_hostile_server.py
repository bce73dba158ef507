"""A server that asks for what it must not have: refused with the reason in the site's log, nothing sent, nothing spent.

Each row is one request that a real site would carry out, with one thing changed.
"""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmedgen.federation import local_round, messages, records
from fedmedgen.privacy.randomness import Stream

Tamper = Callable[[RecordDict], Any]
NAN, INF = float("nan"), float("inf")


def word(key: str, value: Any) -> Tamper:
    """Another word in the request's config."""
    return lambda content: content[records.CONFIG].update({key: value})


def no_word(key: str) -> Tamper:
    return lambda content: content[records.CONFIG].pop(key)


def setting(path: str, value: Any) -> Tamper:
    """Another value of one setting, as no composition would let it pass."""

    def change(content: RecordDict) -> None:
        mapping = json.loads(content[records.CONFIG][records.SETTINGS])
        *groups, last = path.split(".")
        group = mapping
        for name in groups:
            group = group[name]
        group[last] = value
        content[records.CONFIG][records.SETTINGS] = json.dumps(mapping)

    return change


def network(channels: list[int], **more: Any) -> Tamper:
    def change(content: RecordDict) -> None:
        for key, value in {"channels": channels, "attention": [False] * len(channels), **more}.items():
            setting(f"generator.{key}", value)(content)

    return change


def latent(**autoencoder: Any) -> Tamper:
    """A latent generator with an autoencoder of this kind."""

    def change(content: RecordDict) -> None:
        setting("generator.family", "latent")(content)
        for key, value in autoencoder.items():
            setting(f"autoencoder.{key}", value)(content)

    return change


def drawn_images(count: int) -> Tamper:
    """A GAN whose decoder draws so many beside each private step."""

    def change(content: RecordDict) -> None:
        setting("generator.family", "gan")(content)
        setting("generator.batch_size", count)(content)

    return change


def record(name: str, value: Any) -> Tamper:
    return lambda content: content.__setitem__(name, value)


def no_record(name: str) -> Tamper:
    return lambda content: content.pop(name)


def arrays(change: Callable[[dict[str, np.ndarray]], Any]) -> Tamper:
    """Other arrays: `change` works on them in place."""

    def tamper(content: RecordDict) -> None:
        found = dict(messages.unpack_arrays(content.array_records[records.ARRAYS]))
        change(found)
        content[records.ARRAYS] = messages.pack_arrays(found)

    return tamper


def each(change: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    return arrays(lambda found: found.update({name: change(value) for name, value in found.items()}))


def crafted(entry: Any, data: bytes = b"") -> Tamper:
    """The first array as an entry of the header that isn't what its bytes are."""

    def change(content: RecordDict) -> None:
        found = messages.unpack_arrays(content.array_records[records.ARRAYS])
        header = json.dumps({next(iter(found)): entry}).encode()
        as_bytes(len(header).to_bytes(8, "little") + header + data)(content)

    return change


def as_bytes(data: bytes) -> Tamper:
    return record("arrays", ArrayRecord({"packed": Array("uint8", (len(data),), "safetensors", data)}))


MECHANISM = [
    *[(f"noise {value}", word("noise-multiplier", value), "noise.multiplier")
      for value in (0.0, -1.0, 1e-300, 0.05, NAN, INF, -INF)],
    *[(f"clip {value}", setting("privacy.clip_norm", value), "clip.norm")
      for value in (1e9, 1e-42, 0.0, -1.0, NAN, INF)],
    ("clip without end", setting("privacy.clip_norm", 10**400), "too large|settings"),
    *[(f"rate {value}", setting("privacy.sample_rate", value), "sample.rate") for value in (1.0, 0.0, -0.5, 1.5, NAN)],
    *[(f"delta {value}", setting("privacy.delta", value), "delta") for value in (1e-2, 0.0, 1.0, -1e-5, NAN)],
    ("no draws", setting("privacy.noise_draws", 0), "noise_draws"),
    ("a million draws", setting("privacy.noise_draws", 10**6), "rows per patient"),
    ("a million images", setting("generator.images_per_patient", 10**6), "rows per patient"),
    ("a million rounds", setting("rounds", 10**6), "rounds"),
    ("a million steps", setting("privacy.generator_steps", 10**6), "steps"),
    ("no steps", setting("privacy.generator_steps", 0), "generator_steps"),
    ("no privacy", setting("privacy.mode", "none"), "privacy=none"),
    ("mode unknown", setting("privacy.mode", "off"), "privacy.mode"),
    ("engine unknown", setting("privacy.engine", "fast"), "privacy.engine"),
    ("precision unknown", setting("privacy.precision", "float8"), "privacy.precision"),
    *[(f"learning rate {value}", setting("privacy.learning_rate", value), "learning.rate")
      for value in (NAN, INF, -1.0, 0.0, 1e30)],
    *[(f"pull {value}", word("proximal-mu", value), "proximal-mu") for value in (NAN, INF, -1.0, 1e300)],
]  # fmt: skip

STUDY = [
    ("stage unknown", word("stage", "classifier"), "stage 'classifier'"),
    ("generator unknown", setting("generator.name", "gan"), "unknown setting 'generator.name'"),
    ("preconditioning unknown", setting("generator.preconditioning", "vae"), "preconditioning"),
    ("wide network", network([65536, 65536]), "parameters"),
    ("deep network", network([8] * 5_000), "levels"),
    ("deep autoencoder", setting("autoencoder.channels", [8] * 5_000), "levels"),
    ("latents of no network", setting("generator.family", "latent"), "no hash of public arrays|weights don't fit"),
    ("wide latents", latent(latent_channels=10**7), "parameters"),
    ("wide autoencoder", latent(channels=[10**5] * 2), "numbers in one layer"),
    ("an autoencoder of no level", latent(channels=[]), "autoencoder.channels"),
    ("adapters of no rank", setting("generator.rank", 0), "generator.rank"),
    ("side", setting("data.size", [8, 32768]), "side"),
    ("tiny rate", setting("privacy.sample_rate", 1e-12), "sample rate"),
    ("device", setting("runtime.device", "cuda"), "runtime.device"),
    ("no image", setting("segmenter.images_per_patient", -1), "images_per_patient"),
    ("endless steps", setting("privacy.generator_steps", 10**400), "steps"),
    ("many layers", setting("generator.layers_per_block", 1000), "layers"),
    ("impossible network", setting("generator.norm_groups", 7), "no network that can be built"),
    ("a billion drawn images", drawn_images(10**9), "drawn images a step"),
    ("negative network", network([-8, -8]), "no network that can be built|weights don't fit|above 0"),
    ("huge image", setting("data.size", [100_000, 100_000]), "pixels"),
    ("many classes", setting("data.classes", [str(number) for number in range(5000)]), "classes"),
    *[(f"round {value}", word("server-round", value), "for round") for value in (0, -1, 10**12, 5)],
    *[(f"run {value[:3]!r}", word("run", value), "run's name") for value in ("", "x" * 10_000, "a\nb", "\x1b[2J")],
    ("no JSON", word("settings", "patient 17"), "JSON"),
    ("a list", word("settings", "[]"), "group of settings"),
    ("nothing", word("settings", "null"), "group of settings"),
    ("gigantic", word("settings", " " * 10_000_000), "at most 65536 characters"),
    ("nested", word("settings", "[" * 60_000), "JSON"),
    ("a long number", word("settings", '{"seed": ' + "1" * 5000 + "}"), "JSON"),
]

SITES_OWN = [
    (key, setting(key, value), key)
    for key, value in {
        "data.root": "/etc", "data.public": True, "data.columns.patient": "label", "data.partition": "even",
        "data.sites": 7, "data.alpha": 9.0, "data.shares": [0.1], "data.test_share": 0.9, "data.min_patients": 24,
        "data.max_patients": 1, "data.phantoms.images_per_patient": 9, "ledger.root": "/tmp", "out": "/tmp",
        "backend": "in-process", "fault.site": "north", "fault.round": 1,
    }.items()
]  # fmt: skip

GREED = [
    (key, word(key, value), f"the key '{key}'")
    for key, value in {
        "simulation": "true", "seed-noise": "1", "noise-seed": 7, "seed": 7, "raw-metrics": True, "loss": "",
        "counts": "exact", "ranges": "all", "images": 8, "batch": b"1", "data-root": "/etc",
        "policy": "elsewhere/mine.yaml", "reply": ["images", "masks"], "no-privacy-allowed": True, "debug": 1.0,
    }.items()
]  # fmt: skip

FORM = [
    ("more words", record("more", ConfigRecord({"loss": "1"})), "the record 'more'"),
    ("more arrays", record("batch", ArrayRecord([np.zeros(1, np.float32)])), "arrays under 'batch'"),
    ("more metrics", record("metrics", MetricRecord({"loss": 1.0})), "the key 'loss'"),
    ("metrics as words", record("metrics", ConfigRecord({"loss": 1.0})), "the record 'metrics'"),
    ("words as arrays", record("config", ArrayRecord([np.zeros(1, np.float32)])), "arrays under 'config'"),
    ("no words", no_record("config"), "lacks run, stage"),
    ("no arrays", no_record("arrays"), "lacks arrays"),
    ("no noise named", no_word("noise-multiplier"), "lacks noise-multiplier"),
    ("no settings", no_word("settings"), "lacks settings"),
    ("settings as bytes", word("settings", b"{}"), "bytes under 'settings'"),
    ("settings as a list", word("settings", ["{}"]), "list under 'settings'"),
    ("noise as text", word("noise-multiplier", "0"), "str under 'noise-multiplier'"),
    ("noise as a whole number", word("noise-multiplier", 0), "int under 'noise-multiplier'"),
    ("round as a truth", word("server-round", True), "bool under 'server-round'"),
    ("round as a fraction", word("server-round", 1.5), "float under 'server-round'"),
    ("other name", arrays(lambda found: found.update(batch=found.popitem()[1])), "don't fit its network"),
    ("fewer", arrays(lambda found: found.popitem()), "don't fit its network"),
    ("one more", arrays(lambda found: found.update(images=np.zeros((8, 1, 16, 16), np.float32))), "'images'"),
    ("none", arrays(lambda found: found.clear()), "don't fit its network"),
    ("float64", each(lambda value: value.astype(np.float64)), "must be float32"),
    ("whole numbers", each(lambda value: value.astype(np.int32)), "must be float32"),
    ("another shape", each(lambda value: value[None]), "must be float32 of shape"),
    ("not a number", each(lambda value: value * np.float32(np.nan)), "not all finite"),
    ("infinite", each(lambda value: value + np.float32(np.inf)), "not all finite"),
    ("pickled", as_bytes(pickle.dumps([1])), "arrays can't be read"),
    (
        "an array of another type",
        crafted({"dtype": "object", "shape": [1], "data_offsets": [0, 4]}, b"1234"),
        "arrays can't be read",
    ),
    ("no array", crafted("patient 17"), "arrays can't be read"),
    (
        "a lying shape",
        crafted({"dtype": "F32", "shape": [4 * 10**12], "data_offsets": [0, 4]}, b"1234"),
        "arrays can't be read",
    ),
    (
        "bytes that aren't there",
        crafted({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, b"1234"),
        "arrays can't be read",
    ),
    (
        "bytes before the first",
        crafted({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, b"1234"),
        "arrays can't be read",
    ),
    ("a header without end", as_bytes((2**40).to_bytes(8, "little") + b"{}"), "arrays can't be read"),
    ("a deep header", as_bytes((10**6).to_bytes(8, "little") + b"[" * 10**6), "arrays can't be read"),
    ("no header", as_bytes(b""), "arrays can't be read"),
    ("arrays one by one", record("arrays", ArrayRecord({"w": Array(np.zeros(1, np.float32))})), "aren't packed as one"),
    (
        "a pickle beside",
        record("arrays", ArrayRecord({"packed": Array("object", (1,), "numpy.ndarray", b"x")})),
        "aren't packed as one",
    ),
]
ROWS = [*MECHANISM, *STUDY, *SITES_OWN, *GREED, *FORM]
TYPES = ["evaluate", "query", "train.raw", "evaluate.images", "query.ranges", "system"]


@pytest.fixture
def built_on(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The devices that a network was built on: "meta" takes no memory."""
    seen: set[str] = set()
    plain = local_round.build_model

    def look(*words: Any) -> Any:
        seen.add(torch.get_default_device().type)
        return plain(*words)

    monkeypatch.setattr(local_round, "build_model", look)
    return seen


def assert_refused(server: Any, content: RecordDict, *, message_type: str = "train") -> None:
    """Nothing leaves but a code, and nothing is spent."""
    reply = server.send(content, message_type).content
    assert list(reply) == [records.CONFIG]
    assert set(reply[records.CONFIG]) == {records.SITE, records.STATUS}
    assert reply[records.CONFIG][records.SITE] in ("north", "")
    assert reply[records.CONFIG][records.STATUS] == records.REFUSED_POLICY
    assert not server.spent


def test_the_request_that_each_row_changes_is_carried_out(server: Any, loads: list[str]) -> None:
    assert server.ask().config[records.STATUS] == records.DONE
    assert (loads, server.spent) == ([server.policy.data_root], True)


@pytest.mark.parametrize(("tamper", "reason"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_hostile_request_is_refused_before_data_are_read_or_anything_is_spent(
    server: Any, loads: list[str], built_on: set[str], caplog: pytest.LogCaptureFixture, tamper: Tamper, reason: str
) -> None:
    content = server.request()
    built_on.clear()
    tamper(content)
    assert_refused(server, content)
    last = caplog.records[-1]
    assert last.exc_info is not None
    assert re.search(reason, str(last.exc_info[1]))
    assert (loads, built_on <= {"meta"}) == ([], True)


@pytest.mark.parametrize("message_type", TYPES)
def test_a_message_of_another_type_is_refused(
    server: Any, loads: list[str], caplog: pytest.LogCaptureFixture, message_type: str
) -> None:
    assert_refused(server, server.request(), message_type=message_type)
    assert "type" in caplog.text or "may not hold" in caplog.text
    assert loads == []


@pytest.mark.parametrize(
    "tamper", [row[1] for row in [*SITES_OWN, *GREED]], ids=[row[0] for row in [*SITES_OWN, *GREED]]
)
def test_a_hostile_question_is_not_even_told_the_public_counts(server: Any, tamper: Tamper) -> None:
    content = RecordDict({records.CONFIG: ConfigRecord({records.SETTINGS: messages.pack_settings(server.settings)})})
    assert server.send(content, "query").content[records.CONFIG][records.STATUS] == records.DONE
    tamper(content)
    assert_refused(server, content, message_type="query")


def test_neither_a_run_config_nor_a_message_switches_on_seeds(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"simulation": "true", "seed": 1, "noise-seed": 1, "policy": "elsewhere/mine.yaml", "data.root": "/etc"}

    def seeded(*_: object) -> None:
        raise AssertionError("seeded noise at a real site")

    monkeypatch.setattr(Stream, "seeded", seeded)
    monkeypatch.setenv("FEDMEDGEN_SIMULATION", "1")
    server.run_config.update(asked)
    first, other = server.ask(), server.at(folder=str(tmp_path / "other" / "state")).ask()
    assert first.config[records.STATUS] == other.config[records.STATUS] == records.DONE
    assert first.metrics == {records.WEIGHT: 30.0}
    assert any(not np.array_equal(first.arrays[key], other.arrays[key]) for key in first.arrays)

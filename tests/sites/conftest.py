"""A real site as its own policy file describes it, and a server that asks it for a round through the ClientApp."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MessageType, RecordDict

from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.deployment.guard import BUNDLE
from fedmedgen.emission.writing import write_set
from fedmedgen.federation import local_round, messages, plan, records
from fedmedgen.federation.egress import Reply
from fedmedgen.federation.policy import SitePolicy
from fedmedgen.privacy.new_ledger import create_ledger
from fedmedgen.settings import Settings
from sites import site
from sites.app import app

PATIENTS = 24
STUDY = ("study=demo", "smoke=true", "data.size=[16,16]", "backend=deployment", "privacy.engine=reference",
         "privacy.generator_steps=2", "privacy.segmenter_steps=2", "privacy.noise_draws=1")  # fmt: skip
NODE = 7
CHECKED = "0" * 64  # the bundle that the site's guard has checked, as far as the tests' own process goes


@dataclass(frozen=True)
class Server:
    """Asks one site for what it wants; `run_config` is what a server's operator may write."""

    policy: SitePolicy
    settings: Settings
    run_config: dict[str, Any] = field(default_factory=dict)

    def at(self, **changes: Any) -> "Server":
        """The same server at a site of another policy."""
        return replace(self, policy=replace(self.policy, **changes))

    def asking(self, *words: str) -> "Server":
        """The same server with another study."""
        return replace(self, settings=compose([*STUDY, *words]))

    def request(self, stage: str = "generator", **words: Any) -> RecordDict:
        """A round that the site would carry out, with some words of its config changed."""
        model = local_round.build_model(self.settings, stage)
        arrays, public = local_round.trainable_arrays(model), local_round.public_arrays(model)
        config = messages.request_config("run-1", stage, self.settings, plan.noise_multiplier(self.settings))
        config[records.SERVER_ROUND] = 1
        for key, value in words.items():
            config[key.replace("_", "-")] = value
        if public and "public_arrays" not in words:
            config[records.PUBLIC] = messages.digest_of(public)
            arrays |= {records.PUBLIC_PREFIX + name: value for name, value in public.items()}
        return RecordDict({records.ARRAYS: messages.pack_arrays(arrays), records.CONFIG: config})

    def create(self) -> "Server":
        """The same server, after a person at the site has made its ledger."""
        policy = self.policy_read
        create_ledger(policy.ledger_path, key_path=policy.key_path, head_path=policy.head_path)
        return self

    def send(self, content: RecordDict, message_type: str = MessageType.TRAIN) -> Message:
        """What Flower's runtime would hand back to the server, from a site that has its ledger."""
        if not Path(self.policy.folder).exists():
            self.create()
        return self.deliver(content, message_type)

    def deliver(self, content: RecordDict, message_type: str = MessageType.TRAIN) -> Message:
        """What Flower's runtime would hand back to the server, from the site as it is."""
        context = Context(1, NODE, {"policy": str(self.policy_file)}, RecordDict(), self.run_config)
        return app(Message(content, dst_node_id=NODE, message_type=message_type), context)

    def ask(self, stage: str = "generator", **words: Any) -> Reply:
        return messages.unpack_reply(self.send(self.request(stage, **words)).content)

    @property
    def policy_file(self) -> Path:
        """The site's policy, written."""
        path = Path(self.policy.folder).with_name("policy.yaml")
        self.policy.write(path)
        return path

    @property
    def policy_read(self) -> SitePolicy:
        """The policy as the site reads it."""
        return SitePolicy.read(self.policy_file)

    @property
    def spent(self) -> bool:
        """Whether anything stands in the site's ledger."""
        return self.policy.ledger_path.exists() and bool(self.policy.ledger_path.read_bytes())

    @property
    def events(self) -> Sequence[str]:
        """What stands in the site's ledger, event by event."""
        lines = self.policy.ledger_path.read_text().splitlines()
        return [json.loads(line)["event"] for line in lines]


@pytest.fixture(scope="session")
def settings() -> Settings:
    return compose(STUDY)


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Path:
    """A site's folder of radiographs, two for each patient."""
    folder = tmp_path_factory.mktemp("films") / "north"
    classes, masks = settings.data.classes, settings.data.mask_classes
    drawn = phantoms.draw("chest", 2 * PATIENTS, size=(16, 16), seed=1, classes=classes, mask_classes=masks)
    cases = tuple(replace(case, site="", patient=None) for case in drawn)
    write_set(CaseSet(cases, classes, masks), folder, datasheet={})
    lines = (folder / "labels.csv").read_text().splitlines()
    patients = ["patient", *(f"p{number // 2}" for number in range(2 * PATIENTS))]
    (folder / "labels.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(lines, patients, strict=True)) + "\n")
    return folder


@pytest.fixture
def policy(tmp_path: Path, films: Path) -> SitePolicy:
    return SitePolicy(
        site="north",
        folder=str(tmp_path / "state"),
        patients_declared=30,
        labelled_declared=20,
        lifetime_epsilon=10.0,
        lifetime_delta=1e-5,
        data_root=str(films),
        bundles=(CHECKED,),
    )


@pytest.fixture
def server(identity: None, policy: SitePolicy, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv(BUNDLE, CHECKED)
    monkeypatch.setattr(site, "check_once", lambda *_: None)  # its second a round is spent in its own tests
    return Server(policy, settings)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that a site reads its data, the folder it reads."""
    from fedmedgen.federation import own_data

    seen: list[str] = []
    plain: Callable[..., CaseSet] = own_data._read

    def look(data: Any, *rest: str) -> CaseSet:
        seen.append(data.root)
        return plain(data, *rest)

    monkeypatch.setattr(own_data, "_read", look)
    return seen

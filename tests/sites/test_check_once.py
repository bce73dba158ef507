"""A site checks every engine on a model before its first private step, once for each engine and precision."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedmedgen.composition import compose
from fedmedgen.errors import SelfCheckError
from fedmedgen.federation import local_round
from fedmedgen.federation.plan import GENERATOR, SEGMENTER
from fedmedgen.privacy import kernels
from fedmedgen.privacy.per_patient import ENGINES
from fedmedgen.settings import Settings
from sites import selfcheck

TINY = ["study=demo", "data.size=[16,16]", "generator.channels=[8,8]", "generator.norm_groups=4"]


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_passed", set())


def settings(*more: str) -> Settings:
    return compose([*TINY, *more])


@pytest.mark.parametrize("stage", [GENERATOR, SEGMENTER])
def test_a_right_engine_passes_and_leaves_a_mark_that_says_what_was_checked(tmp_path: Path, stage: str) -> None:
    asked = settings("privacy.engine=reference")
    selfcheck.check_once(tmp_path / "marks", asked, stage)
    (mark,) = (tmp_path / "marks").iterdir()
    assert json.loads(mark.read_text())[0] == stage
    *_, how, machine, code = json.loads(mark.read_text())
    assert (how[:2], machine[0]) == (["reference", "fp32"], "cpu")
    assert torch.__version__ in code


def test_a_mark_speaks_only_of_the_code_and_the_machine_that_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(selfcheck, "check_engine", lambda engine, *_, **__: asked.append(engine))
    tiny = settings("privacy.engine=reference")
    changes = (
        lambda: monkeypatch.setenv("FEDMEDGEN_BUNDLE", "1" * 64),
        lambda: monkeypatch.setattr(selfcheck, "version", lambda _: "9.9"),
        lambda: monkeypatch.setattr(torch, "get_num_threads", lambda: 7),
        lambda: [mark.write_text("[]") for mark in (tmp_path / "marks").iterdir()],
    )
    for change in (lambda: None, *changes):
        change()
        for _ in range(2):
            selfcheck.check_once(tmp_path / "marks", tiny, GENERATOR)
            selfcheck._passed.clear()
    assert len(asked) == 1 + 3 + 1


def test_a_mark_speaks_only_of_the_kernels_that_were_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked = tmp_path / "kernels.json", []
    check = selfcheck.check_engine

    def counted(*arguments: Any, **words: Any) -> object:
        asked.append(arguments[0])
        return check(*arguments, **words)

    monkeypatch.setattr(selfcheck, "check_engine", counted)
    monkeypatch.setattr(kernels, "SECONDS", 1e-3)
    selfcheck.check_once(tmp_path / "marks", settings("privacy.engine=fused"), GENERATOR)  # by the rule
    selfcheck._passed.clear()
    kernels.keep_in(str(file))
    try:
        for _ in range(2):  # what the check has measured is checked as it is kept
            selfcheck.check_once(tmp_path / "marks", settings("privacy.engine=fused"), GENERATOR)
            selfcheck._passed.clear()
        assert asked == ["fused"] * 3
        found = json.loads(file.read_text())
        file.write_text(json.dumps({shape: {"unfolded": "one by one"}.get(kernel, "unfolded")
                                    for shape, kernel in found.items()}))  # fmt: skip
        kernels.measured_in.cache_clear()  # as another process reads it
        kernels.keep_in(str(file))
        selfcheck.check_once(tmp_path / "marks", settings("privacy.engine=fused"), GENERATOR)
        assert asked == ["fused"] * 4
    finally:
        kernels.measured_in.cache_clear()
        kernels.keep_in("")


def test_each_engine_and_precision_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(selfcheck, "check_engine", lambda engine, *_rest, precision: asked.append((engine, precision)))
    every = [(engine, precision) for engine in ENGINES for precision in ("fp32", "bf16")]
    for engine, precision in every * 2:
        selfcheck.check_once(
            tmp_path, settings(f"privacy.engine={engine}", f"privacy.precision={precision}"), GENERATOR
        )
    assert asked == every


@pytest.mark.parametrize(
    "words",
    [
        ("generator.channels=[8,16]",), ("segmenter.learning_rate=0.5",),
        ("generator=latent", "prior.phantoms=9", "autoencoder.latent_channels=8"), ("federation.personal=norms",),
        ("data.size=[16,20]",), ("generator.trainable=lora", "prior.steps=1"),
    ],
    ids=str,
)  # fmt: skip
def test_another_network_has_another_mark(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    others = [settings(), settings("generator=latent", "prior.phantoms=9", "autoencoder.latent_channels=4")]
    what = json.dumps(selfcheck._checked(settings(*words), GENERATOR, device), sort_keys=True)
    assert what not in [json.dumps(selfcheck._checked(other, GENERATOR, device), sort_keys=True) for other in others]


class Remembering(nn.Module):
    """A model with a running sum of its patients' images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._module = inner
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        self.seen += x.detach().sum()
        out: torch.Tensor = self._module(x, *rest)
        return out


@pytest.mark.parametrize("engine", ENGINES)
def test_a_wrong_model_is_refused_under_every_engine_and_gets_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    build = local_round.build_model
    monkeypatch.setattr(local_round, "build_model", lambda *arguments: Remembering(build(*arguments)))
    with pytest.raises(SelfCheckError, match="buffers"):
        selfcheck.check_once(tmp_path / "marks", settings(f"privacy.engine={engine}"), GENERATOR)
    assert not (tmp_path / "marks").exists()

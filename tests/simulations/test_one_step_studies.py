"""Whole studies with a VAE and a GAN: curriculum, rounds, resume, segmenter, emission, audit."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmedgen.audit.site_audit import audit
from fedmedgen.errors import SettingsError
from fedmedgen.models.one_step import OneStepGenerator
from fedmedgen.models.saving import load_generator, load_segmenter
from server import decoder
from simulations.run import simulate

QUICK = ("study=demo", "smoke=true", "evaluation.enabled=false", "emission.count=6", "data.max_patients=12",
         "data.size=[16,16]", "generator.width=16", "generator.code=4", "runtime.server_threads=1")  # fmt: skip


def weights(run: Path) -> dict[str, np.ndarray]:
    words = json.loads((run / "checkpoint.json").read_text())
    return load_file(run / "checkpoint" / words["arrays"])


@pytest.mark.parametrize(("family", "attack"), [("vae", "loss"), ("gan", "critic")])
def test_a_study_goes_from_a_curriculum_to_an_audit(family: str, attack: str, tmp_path: Path) -> None:
    words = [f"generator={family}", "statistics.share=0.5", "curriculum.steps=2", "audit.canaries=8",
             "audit.holdout=0.4", "rounds=1"]  # fmt: skip
    run = simulate([*QUICK, *words], out=str(tmp_path / "run"))
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "completed"
    assert 9 < result["privacy"]["epsilon"] <= 10
    assert isinstance(load_generator(run / "generator"), OneStepGenerator)
    assert load_segmenter(run / "segmenter").config.mask_classes == ("background", "lung")  # from a fresh UNet
    assert len(list((run / "synthetic" / "masks").glob("*.png"))) == 6
    found = audit(run, "site-1").found
    assert set(found["membership"]) == {attack}
    assert found["membership"][attack]["auc"] != 0.5  # scores that differ
    assert found["canaries"]["kind"] == "directions"


def test_a_gans_decoder_draws_each_class_as_often_as_the_release_says(tmp_path: Path) -> None:
    words = ["generator=gan", "statistics.share=0.5", "rounds=1", "segmenter.rounds=0"]
    run = simulate([*QUICK, *words], out=str(tmp_path / "run"))
    shares = weights(run)["public/class_shares"]
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(shares - 1 / 3).max() > 0.01  # the noise alone makes them uneven


def test_a_study_that_can_not_be_carried_out_costs_nobody_anything(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="segmenter"):
        simulate([*QUICK, "generator=dit"], out=str(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("sites/*/ledger.jsonl"))


def test_a_gan_that_broke_off_goes_on_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*QUICK, "generator=gan", "segmenter.rounds=0", "rounds=3"]
    unbroken = simulate(words, out=str(tmp_path / "unbroken"))
    train = decoder._train

    def broken(settings: object, number: int, *rest: object) -> None:
        if number == 2:
            raise OSError("the server is gone")
        train(settings, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "_train", broken)
    with pytest.raises(OSError, match="gone"):
        simulate(words, out=str(tmp_path / "run"))
    monkeypatch.setattr(decoder, "_train", train)
    resumed = simulate(resume=str(tmp_path / "run"))
    one, other = weights(unbroken), weights(resumed)
    assert one.keys() == other.keys()
    assert any(name.startswith("state/exp_avg.") for name in one)
    assert all(np.array_equal(value, other[name]) for name, value in one.items())
    assert all(
        (unbroken / "generator" / name).read_bytes() == (resumed / "generator" / name).read_bytes()
        for name in ("sampler/diffusion_pytorch_model.safetensors", "reader/diffusion_pytorch_model.safetensors")
    )

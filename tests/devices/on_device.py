"""What sites and the server compute, on a device as on the CPU.

    python -m pytest tests/devices/on_device.py --device cuda

Without `--device` on a stand-in (`stand_in.py`), in a process of its own: `test_devices.py`.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmedgen import devices
from fedmedgen.composition import compose
from fedmedgen.data import phantoms
from fedmedgen.data.cases import CaseSet
from fedmedgen.emission.sampling import emit
from fedmedgen.federation import local_round
from fedmedgen.federation.local_round import Arrays, LocalRound
from fedmedgen.federation.plan import GENERATOR, SEGMENTER, Stage
from fedmedgen.federation.secure_sum import own_part
from fedmedgen.models.latent import LatentDenoiser
from fedmedgen.models.lean import drawing_in
from fedmedgen.privacy import kernels
from fedmedgen.privacy.canaries import Planted
from fedmedgen.privacy.fused_engine import FusedEngine
from fedmedgen.privacy.mechanism import StagePlan
from fedmedgen.privacy.per_patient import ReferenceEngine, make_engine
from fedmedgen.privacy.randomness import Stream
from fedmedgen.settings import Settings
from fedmedgen.training.rows import encode, to_device
from server.autoencoder import fit_autoencoder
from server.curriculum import pretrain
from server.decoder import server_part
from server.run_store import RunStore
from simulations.benchmarks import subject
from simulations.benchmarks.methods import methods
from sites import selfcheck
from tests.devices import stand_in
from tests.privacy.test_fused_engine import attentive, restored, transformer

FAMILIES = ("unet", "dit", "coefficients", "latent", "vae", "gan")
ONE_STEP = ("vae", "gan")
MASKS = ("background", "lung")
TINY = ("study=demo", "smoke=true", "data.size=[16,16]", "autoencoder.steps=3", "curriculum.batch_size=4",
        "generator.sampler_steps=3", "generator.batch_size=4", "segmenter.batch_size=4", "privacy.noise_draws=1",
        "generator.channels=[8,8]", "generator.norm_groups=4")  # fmt: skip
CLASSES = ("normal", "opacity", "nodule")


@pytest.fixture
def used(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, where a site or the server asks for its own."""
    use(device, monkeypatch)
    return device


def use(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_of", lambda _: device)


def study(*words: str) -> Settings:
    return compose([*TINY, *words])


def cases() -> CaseSet:
    return CaseSet(
        tuple(phantoms.draw("chest", 12, size=(16, 16), seed=0, classes=CLASSES, mask_classes=MASKS)), CLASSES, MASKS
    )


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Relative distance, of gradients or of weights."""
    there = [part.cpu().double() for part in found]
    distance = torch.stack([(a - b.double()).norm() for a, b in zip(there, wanted, strict=True)]).norm()
    return float(distance / torch.stack([part.double().norm() for part in wanted]).norm())


def test_tensors_of_the_cpu_are_no_use_on_it(device: torch.device) -> None:
    there, here = torch.ones(2, device=device), torch.ones(2)
    assert (there * 2 + torch.tensor(1.0)).tolist() == [3.0, 3.0]
    assert there.to("cpu").numpy().tolist() == [1.0, 1.0]
    assert (there[None] @ there[:, None]).item() == 2.0
    number = torch.tensor(1.0)
    mixtures: list[Callable[[], object]] = [
        lambda: there + here,
        lambda: here.mul_(there),
        lambda: torch.stack([there, here]),
        lambda: torch.stack([there[0], number]),
        lambda: number.add_(there[0]),
        lambda: here[torch.zeros(1, dtype=torch.long, device=device)],
        lambda: there.index_put_((torch.zeros(2, dtype=torch.long),), here),
    ]
    for mixed in mixtures:
        with pytest.raises((RuntimeError, IndexError), match=r"device|cpu"):
            mixed()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, device=device, generator=torch.Generator())
    with pytest.raises((RuntimeError, TypeError), match="numpy"):
        there.numpy()


def test_operators_that_only_a_cpu_has_are_known() -> None:
    aten = torch.ops.aten
    ours = [aten.mkldnn_linear.default, aten._scaled_dot_product_flash_attention_for_cpu.default]
    both = [aten.convolution.default, aten.add_.Tensor, aten.bmm.default, aten._fused_adam_.default]
    assert stand_in.without_cuda([*ours, *both]) == ["_scaled_dot_product_flash_attention_for_cpu", "mkldnn_linear"]


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("bf16", 0.03)])
@pytest.mark.parametrize("engine", ["reference", "opacus", "fused"])
@pytest.mark.parametrize("network", [attentive, transformer])
def test_an_engine_sums_what_one_row_at_a_time_sums_on_the_cpu(
    network: Callable[[], nn.Module], engine: str, precision: str, bound: float, device: torch.device
) -> None:
    torch.manual_seed(0)
    model = network()
    patients = [{"x": (1 + n) * torch.randn(count, 1, 16, 16)} for n, count in enumerate([3, 1, 9, 2, 20, 1])]
    wanted = ReferenceEngine(model, restored).clipped_sum(patients, 1.0)
    there = make_engine(engine, copy.deepcopy(model).to(device), restored, precision=precision)
    found = there.clipped_sum([to_device(rows, device) for rows in patients], 1.0)
    assert getattr(there, "instead", None) is None
    assert {part.device for part in found} == {device}
    assert apart(found, wanted) < bound


def test_kernels_are_measured_on_it(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SECONDS", 1e-3)
    torch.manual_seed(0)
    model, rows = attentive(), {"x": torch.randn(3, 1, 16, 16)}
    wanted = ReferenceEngine(model, restored).clipped_sum([rows], 1.0)
    measured = kernels.Measured(tmp_path / "kernels.json")
    there = FusedEngine(model.to(device), restored, choose=measured)
    with measured.measuring():
        there.clipped_sum([to_device(rows, device)], 1.0)
    assert "threads" not in (tmp_path / "kernels.json").read_text()
    assert apart(there.clipped_sum([to_device(rows, device)], 1.0), wanted) < 1e-6


@pytest.mark.parametrize(
    ("family", "engine", "precision"),
    [*((family, "fused", "fp32") for family in FAMILIES), ("gan", "opacus", "fp32"), ("dit", "fused", "bf16")],
)
def test_a_site_checks_its_engine_on_it(
    family: str, engine: str, precision: str, used: torch.device, tmp_path: Path
) -> None:
    asked = study(
        f"generator={family}",
        f"privacy.engine={engine}",
        "generator.images_per_patient=2",
        f"privacy.precision={precision}",
    )
    selfcheck.check_once(tmp_path, asked, GENERATOR)
    (mark,) = tmp_path.iterdir()
    assert used.type in mark.read_text()


@pytest.mark.parametrize(("privacy", "bound"), [("none", 0.03), ("eps10", 1e-3)])
@pytest.mark.parametrize(("family", "stage"), [*((family, GENERATOR) for family in FAMILIES), ("unet", SEGMENTER)])
def test_a_round_moves_the_weights_as_on_the_cpu(
    family: str, stage: str, privacy: str, bound: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise Adam moves a weight whose gradient is next to nothing as far as any: rounding alone decides."""
    asked = study(f"generator={family}", f"privacy={privacy}", "privacy.engine=fused")
    on_cpu = after_a_round(asked, stage)
    use(device, monkeypatch)
    start, there = weights(asked, stage), after_a_round(asked, stage)
    assert np.any(flat(there) != flat(start))
    assert np.linalg.norm(flat(there) - flat(on_cpu)) < bound * np.linalg.norm(flat(on_cpu) - flat(start))


def weights(asked: Settings, stage: str) -> Arrays:
    return local_round.trainable_arrays(local_round.build_model(asked, stage))


def after_a_round(asked: Settings, stage: str) -> Arrays:
    mechanism = StagePlan(name=stage, sample_rate=0.5, noise_multiplier=0.1, clip_norm=0.5, steps=2,
                          denominator_patients=12)  # fmt: skip
    request = LocalRound(
        asked, Stage(stage, 1, 2, 1e-3), 1, mechanism if asked.private else None, proximal_mu=0.1,
        canaries=Planted(np.ones(4, dtype=bool), seed=0),
        public=local_round.public_arrays(local_round.build_model(asked, stage)),
    )  # fmt: skip
    return local_round.run(request, weights(asked, stage), cases(), stream=Stream.seeded(0, "round", 1)).arrays


def flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([value.ravel() for value in arrays.values()])


def test_a_sites_part_of_a_secure_sum_is_that_of_the_cpu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def vectors() -> list[np.ndarray]:
        asked, stage = study("generator=unet", "privacy.engine=fused"), Stage(GENERATOR, 1, 1, 1e-3)
        mechanism = StagePlan(name=GENERATOR, sample_rate=0.5, noise_multiplier=1.0, clip_norm=0.5, steps=1,
                              denominator_patients=12)  # fmt: skip
        request = LocalRound(asked, stage, 1, mechanism)
        return list(own_part.own_vectors(request, weights(asked, GENERATOR), cases(), Stream.seeded(0, "sum", 1)))

    on_cpu = vectors()
    use(device, monkeypatch)
    there = vectors()
    assert len(there) == len(on_cpu) > 0
    assert np.linalg.norm(np.stack(there) - np.stack(on_cpu)) < 1e-5 * np.linalg.norm(np.stack(on_cpu))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cases_are_drawn_on_it(family: str, precision: str, device: torch.device) -> None:
    asked = study(f"generator={family}", *([] if family in ONE_STEP else ["generator.guidance=1.5"]))
    drawn = partial(emit, counts=5, settings=asked.generator, seed=0)
    generator = local_round.build_generator(asked)
    generator.name_classes(CLASSES, MASKS)
    on_cpu = drawn(generator).images()
    there = drawn(drawing_in(generator.to(device), precision)).images()
    assert there.shape == on_cpu.shape
    assert np.abs(there - on_cpu).mean() < (1e-4 if precision == "fp32" else 0.02)


def test_a_segmenters_masks_are_those_of_the_cpu(device: torch.device) -> None:
    segmenter, x = local_round.build_model(study(), SEGMENTER), torch.from_numpy(cases().images())
    with torch.no_grad():
        torch.testing.assert_close(
            segmenter(x), copy.deepcopy(segmenter).to(device)(x.to(device)).cpu(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("family", ["unet", "gan"])
def test_the_server_teaches_a_network_on_it(
    family: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taught(folder: str) -> list[Tensor]:
        store = RunStore.create(study(f"generator={family}", "prior.steps=3", f"out={tmp_path / folder}"))
        network = local_round.build_whole(store.settings)
        pretrain(store, network, cases().cases)
        return [weight.detach() for weight in network.parameters()]

    on_cpu = taught("cpu")
    use(device, monkeypatch)
    there = taught("there")
    assert {weight.device.type for weight in there} == {"cpu"}
    assert apart(there, on_cpu) < 1e-4


def test_the_server_fits_an_autoencoder_on_it(used: torch.device, tmp_path: Path) -> None:
    store = RunStore.create(study("generator=latent", f"out={tmp_path / 'run'}"))
    denoiser = local_round.build_whole(store.settings)
    assert isinstance(denoiser, LatentDenoiser)
    fit_autoencoder(store, denoiser, encode(cases().cases, MASKS))
    latents = denoiser.to_input(encode(cases().cases, MASKS))
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)


def test_the_server_trains_a_decoder_on_it(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def public() -> Arrays:
        asked = study("generator=gan", "generator.decoder_steps=2", "rounds=3")
        network = local_round.build_generator(asked)
        part = server_part(asked, network)
        assert part.step is not None
        for number in (1, 2):  # the second goes on from the first's state
            part.step(number, local_round.trainable_arrays(network), part)
        return part.public

    on_cpu = public()
    use(device, monkeypatch)
    assert np.linalg.norm(flat(public()) - flat(on_cpu)) < 1e-4 * np.linalg.norm(flat(on_cpu))


@pytest.mark.parametrize("method", ["ordinary_fp32", "hooks", "vmap", "fused_measured_bf16"])
def test_benchmarks_measure_it(method: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "device", lambda: device)
    monkeypatch.setattr(kernels, "SECONDS", 1e-3)
    found = methods(subject.network(quick=True), 1.0)[method](subject.patients(2, 1))
    assert {part.device for part in found} == {device}

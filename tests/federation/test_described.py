"""What no study can carry out is refused before anybody is asked, let alone pays."""

import pytest

from fedmedgen.composition import compose
from fedmedgen.errors import SettingsError
from fedmedgen.federation.described import described, require_feasible

QUICK = ("study=demo", "smoke=true")
BAD = {
    "a segmenter from a transformer": (("generator=dit",), "segmenter"),
    "a segmenter whose groups don't fit": (("generator=vae", "generator.norm_groups=16", "generator.width=32"),
                                           "norm_groups"),
    "adapters in a VAE": (("generator=vae", "generator.trainable=lora", "prior.steps=1"), "generator.trainable"),
    "adapters beside nothing": (("generator.trainable=lora",), "set prior.steps"),
    "adapters beside a release alone": (("generator.trainable=lora", "statistics.share=0.5"), "set prior.steps"),
    "coefficients without a spectrum": (("generator=coefficients", "generator.preconditioning=edm"), "spectral"),
    "norms that train and stay": (("generator.trainable=norms", "federation.personal=norms", "prior.steps=1"),
                                  "nothing to send"),
    "a GAN with layers of its own": (("generator=gan", "federation.personal=norms"), "federation.personal"),
    "latents of nothing": (("generator=latent", "prior.phantoms=0"), "prior.phantoms"),
    "lessons without images": (("prior.steps=2", "prior.phantoms=0"), "prior.phantoms"),
    "attention where there is none": (
        ("generator.trainable=attention", "prior.steps=1", "generator.attention=[false,false]"), "nothing to train"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_no_study_can_carry_out_is_refused_in_words(what: str) -> None:
    words, named = BAD[what]
    with pytest.raises(SettingsError, match=named):
        require_feasible(compose([*QUICK, *words]))


@pytest.mark.parametrize("family", ["unet", "latent", "vae", "gan"])
def test_whatever_family_has_networks_passes_and_takes_no_memory(family: str) -> None:
    asked = compose([*QUICK, f"generator={family}", "prior.phantoms=9"])
    require_feasible(asked)
    assert {value.device.type for value in described(asked, "segmenter").parameters()} == {"meta"}


@pytest.mark.parametrize(
    "words",
    [
        ("generator.channels=[]", "generator.attention=[]"), ("generator.layers_per_block=0",),
        ("generator.guidance=3", "generator.label_dropout=0"), ("generator=vae", "generator.guidance=2"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="generator"):
        compose([*QUICK, *words])

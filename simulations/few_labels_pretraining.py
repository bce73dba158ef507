"""The runs that the rows of the few-labels table start from: pre-trained denoisers, and synthetic pairs."""

from dataclasses import dataclass
from pathlib import Path

from simulations.run import simulate

COMMON = ("study=few-labels", "segmenter.rounds=0", "evaluation.enabled=false", "runtime.server_threads=1")
PAIRS = ("data.columns.patient=patient", "segmenter.rounds=0", "runtime.server_threads=1")
RELEASED_PAIRS = ("study=pairs", *PAIRS, "evaluation.enabled=false")


@dataclass(frozen=True)
class Pretraining:
    """A study that ends with a denoiser, or with pairs of image and mask: the words that give it."""

    words: tuple[str, ...]
    common: tuple[str, ...] = COMMON

    def also(self, *words: str) -> "Pretraining":
        """The same with more words."""
        return Pretraining((*self.words, *words), self.common)

    def run(self, runs: Path, name: str) -> None:
        """Run it, unless it has ended before."""
        out = runs / f"pretrain-{name}"
        if not (out / "result.json").is_file():
            simulate([*self.common, *self.words], out=str(out))


OPEN = ("privacy=none",)
LOW = ("generator.noise_mean=-1.5", "generator.noise_std=0.8")  # the noise levels near the one that is fine-tuned at
RELEASED = (
    "data.unlabelled=[]", "statistics.share=1", "curriculum.steps=2500", "curriculum.batch_size=16",
    "prior.phantoms=1000",
)  # fmt: skip
POOLED = ("data.partition=even", "data.sites=1", "federation.min_sites=1")


def only(site: str) -> tuple[str, ...]:
    """One hospital's own radiographs."""
    return (f"data.only=[{site}]", "data.unlabelled=[]", "federation.min_sites=1")


LUNGS = {
    "federated": Pretraining(OPEN),
    "federated-long": Pretraining((*OPEN, "generator.local_steps=240")),
    "federated-longer": Pretraining((*OPEN, "generator.local_steps=480")),
    "federated-longest": Pretraining((*OPEN, "generator.local_steps=960")),
    "federated-low": Pretraining((*OPEN, *LOW, "generator.local_steps=240")),
    "short": Pretraining((*OPEN, "rounds=3")),
    "local": Pretraining((*OPEN, *only("shenzhen"), "generator.local_steps=160")),
    "local-long": Pretraining((*OPEN, *only("shenzhen"), "generator.local_steps=480")),
    "centralised": Pretraining((*OPEN, *POOLED, "generator.local_steps=320")),
    "centralised-long": Pretraining((*OPEN, *POOLED, "generator.local_steps=960")),
    "autoencoder": Pretraining((*OPEN, "generator.noise_std=0.001", "generator.noise_mean=-1.5")),
    "eps10": Pretraining(("privacy=eps10", *RELEASED)),
    "eps1": Pretraining(("privacy=eps1", *RELEASED)),
    "pairs-none": Pretraining(OPEN, ("study=lungs", *PAIRS)),
    "pairs-eps10": Pretraining(("privacy=eps10",), RELEASED_PAIRS),
    "pairs-eps1": Pretraining(("privacy=eps1",), RELEASED_PAIRS),
    "phantoms": Pretraining(
        (
            *OPEN, "data.root=''", "data.unlabelled=[]", "data.labelled_sites=[]", "data.classes=[normal,nodule]",
            "data.sites=1", "federation.min_sites=1", "generator.local_steps=250",
        )
    ),
}  # fmt: skip

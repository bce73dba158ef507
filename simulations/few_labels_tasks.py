"""What is to be marked from few labels: which radiographs, whose labels, and the runs that pre-train for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simulations.few_labels_ablations import ABLATIONS
from simulations.few_labels_pretraining import LUNGS, Pretraining
from simulations.few_labels_rows import ROWS

LARGE = ("data.size=[128,128]",)
DENTAL = (
    "study=dental", "data.size=[128,256]", "generator.with_masks=false", "segmenter.warp=true",
    "segmenter.local_steps=200", "segmenter.batch_size=8",
)  # fmt: skip
TEETH = (*DENTAL, "privacy=none", "segmenter.rounds=0", "evaluation.enabled=false", "runtime.server_threads=1",
         "generator.local_steps=160")  # fmt: skip
ALONE = ("data.sites=1", "federation.min_sites=1")
ALL_BUT_FEDAVG = tuple(name for name in (*ROWS, *ABLATIONS) if "fedavg" not in name)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The study's words, the site whose cases are labelled ("" for all), and which cells are worth their time."""

    words: tuple[str, ...]
    labelled_at: str
    counts: tuple[int, ...] = (5, 1, 20, 2, 10)
    draws: int = 5
    validation: int = 30  # cases of each site that no draw labels
    rows: tuple[str, ...] = ALL_BUT_FEDAVG
    folder: str = ""  # below the runs, of its pre-training
    pretrained: Mapping[str, Pretraining] = field(default_factory=lambda: LUNGS)

    def runs(self, runs: Path) -> Path:
        return runs / self.folder if self.folder else runs


FEW = ("study=few-labels", "privacy=none", "data.unlabelled=[]")
TASKS = {
    "lungs": Task(words=FEW, labelled_at="shenzhen"),
    "lungs-montgomery": Task(words=FEW, labelled_at="montgomery", draws=3, validation=20),
    "lungs-both": Task(
        words=FEW, labelled_at="", counts=(5, 20), draws=5,
        rows=("scratch", "ptdr-federated-long", "scratch-fedavg", "ptdr-fedavg"),
    ),
    "lungs-128": Task(
        words=(*FEW, *LARGE), labelled_at="shenzhen", counts=(5, 20), draws=3, folder="lungs-128",
        pretrained={name: LUNGS[name].also(*LARGE) for name in ("federated", "local", "phantoms")},
    ),
    "caries": Task(
        words=(*DENTAL, "privacy=none"), labelled_at="dc1000", counts=(20, 5), draws=5, validation=12, folder="caries",
        pretrained={
            "local": Pretraining(ALONE, TEETH),
            "federated": Pretraining((), TEETH),
            "phantoms": Pretraining(("data.root=''", "data.columns.patient=patient", *ALONE), TEETH),
        },
    ),
}  # fmt: skip

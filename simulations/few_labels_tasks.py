"""What is to be marked from few labels: which radiographs, whose labels, and the runs that pre-train for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simulations.few_labels_ablations import ABLATIONS
from simulations.few_labels_pretraining import LOW, LUNGS, OPEN, Pretraining, only
from simulations.few_labels_rows import ROWS

RATES = (1e-3, 3e-3, 6e-3)
SLOW = (5e-4, 1e-3, 2e-3)  # for small lesions
LARGE = ("data.size=[128,128]",)
SMALL = ("generator.with_masks=false", "segmenter.foreground_weight=10", "segmenter.dice_weight=0")  # lesions
WHOLE = ("study=dental", *SMALL, "segmenter.local_steps=200", "segmenter.batch_size=4")
DENTAL = (*WHOLE, "data.size=[128,256]")
DENTAL_64 = (*WHOLE, "data.size=[64,128]")
BEFORE = ("privacy=none", "segmenter.rounds=0", "evaluation.enabled=false", "runtime.server_threads=1",
          "emission.count=16")  # fmt: skip
TEETH = (*DENTAL, *BEFORE)
TEETH_64 = (*DENTAL_64, *BEFORE)
TILES = (
    "study=dental", "data.root=runs/tiles/dental", "data.columns.patient=patient", "data.size=[64,64]",
    *SMALL, "segmenter.local_steps=500", "segmenter.batch_size=8",
)  # fmt: skip
CUT = (*TILES, *BEFORE)
ALONE = ("data.sites=1", "federation.min_sites=1")
ALL_BUT_FEDAVG = tuple(name for name in (*ROWS, *ABLATIONS) if "fedavg" not in name)
HALF = (*ALONE, "data.max_patients=32")  # as many as either of two even sites has


@dataclass(frozen=True, kw_only=True)
class Task:
    """The study's words, the site whose cases are labelled ("" for all), and which cells are worth their time."""

    words: tuple[str, ...]
    labelled_at: str
    counts: tuple[int, ...] = (5, 1, 20, 2, 10)
    draws: int = 5
    validation: int = 30  # cases of each site that no draw labels
    rows: tuple[str, ...] = ALL_BUT_FEDAVG
    rates: tuple[float, ...] = RATES  # of which each row takes its best
    folder: str = ""  # below the runs, of its pre-training
    pretrained: Mapping[str, Pretraining] = field(default_factory=lambda: LUNGS)

    def runs(self, runs: Path) -> Path:
        return runs / self.folder if self.folder else runs


FEW = ("study=few-labels", "privacy=none", "data.unlabelled=[]")
TASKS = {
    "lungs": Task(words=FEW, labelled_at="shenzhen"),
    "lungs-montgomery": Task(
        words=FEW, labelled_at="montgomery", draws=3, validation=20,
        pretrained={
            **{name: run for name, run in LUNGS.items() if not name.startswith("local")},
            "local-montgomery": Pretraining(
                (*OPEN, *only("montgomery"), "data.labelled_sites=[]", "generator.local_steps=160")
            ),
        },
    ),
    "lungs-both": Task(
        words=FEW, labelled_at="", counts=(5, 20), draws=5,
        rows=("scratch", "ptdr-federated-long", "scratch-fedavg", "ptdr-fedavg"),
    ),
    "lungs-128": Task(
        words=(*FEW, *LARGE), labelled_at="shenzhen", counts=(5, 20), draws=3, folder="lungs-128",
        pretrained={
            **{name: LUNGS[name].also(*LARGE) for name in ("federated", "local", "phantoms")},
            "federated-low": LUNGS["federated-low"].also(*LARGE, "data.unlabelled=[]", "generator.local_steps=80"),
        },
    ),
    "caries": Task(
        words=(*DENTAL, "privacy=none"), labelled_at="dc1000", counts=(20, 5), draws=3, validation=12,
        rates=SLOW, folder="caries",
        pretrained={
            "local": Pretraining(HALF, TEETH),
            "federated": Pretraining((), TEETH),
            "federated-low": Pretraining(LOW, TEETH),
            "phantoms": Pretraining(("data.root=''", "data.columns.patient=patient", *ALONE), TEETH),
        },
    ),
    "caries-64": Task(
        words=(*DENTAL_64, "privacy=none"), labelled_at="dc1000", counts=(20, 5), draws=3, validation=12,
        rates=SLOW, folder="caries-64",
        pretrained={
            "federated": Pretraining((), TEETH_64),
            "federated-low": Pretraining((*LOW, "generator.local_steps=240"), TEETH_64),
        },
    ),
    "caries-tiles": Task(
        words=(*TILES, "privacy=none"), labelled_at="dc1000", counts=(20, 5), draws=3, validation=12,
        rates=SLOW, folder="caries-tiles",
        pretrained={
            "local": Pretraining(HALF, CUT),
            "federated": Pretraining((), CUT),
            "federated-low": Pretraining((*LOW, "generator.local_steps=240"), CUT),
            "phantoms": Pretraining(("data.root=runs/tiles/phantoms", *ALONE), CUT),
        },
    ),
}  # fmt: skip

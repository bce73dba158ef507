"""Settings of the data: where the radiographs are, how they become tensors, who holds which."""

from dataclasses import dataclass, field
from typing import Literal

from fedmedgen.schema import require


@dataclass(frozen=True, kw_only=True)
class ColumnSettings:
    """Names of the columns in labels.csv."""

    filename: str = "filename"
    label: str = "label"
    label_name: str = "label_name"
    patient: str = "patient"  # or several, with commas between: the first that a table has
    split: str = "split"


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """Procedural radiographs: what the embedded studies train on, and the prior that costs no privacy."""

    anatomy: Literal["chest", "panoramic"] = "chest"
    patients_per_site: int = 2000
    images_per_patient: int = 2


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the radiographs are, how they become tensors, who holds which."""

    root: str = ""  # a folder of sites, a DICOM tree or an npz; empty: phantoms
    public: bool = False  # anybody may see these radiographs: a simulation's report may then tell of single sites
    phantoms: PhantomSettings = field(default_factory=PhantomSettings)
    only: tuple[str, ...] = ()  # of the sites found there; empty: all
    unlabelled: tuple[str, ...] = ()  # more folders of sites, whose radiographs are used without labels and masks
    columns: ColumnSettings = field(default_factory=ColumnSettings)
    classes: tuple[str, ...] = ()  # empty: taken from labels.csv (public by the study's choice)
    mask_classes: tuple[str, ...] = ()  # background first; empty: no masks
    size: tuple[int, int] = (64, 64)  # height, width
    fit: Literal["pad", "squash"] = "pad"
    partition: Literal["natural", "even", "dirichlet", "by-size"] = "natural"
    sites: int = 3
    largest_sites: int = 0  # of a drawn partition: only so many take part, those with the most patients; 0: all
    alpha: float = 0.5  # Dirichlet concentration over labels
    shares: tuple[float, ...] = ()  # by-size: each site's share
    test_share: float = 0.2  # of patients, where no split is given
    min_patients: int = 8
    max_patients: int = 0  # of each site, for quick runs; 0: all
    labelled: int = -1  # training patients who keep their masks, in all; -1: every one
    labelled_sites: tuple[str, ...] = ()  # where those are; empty: anywhere
    labelled_draw: int = 0  # another number, other patients
    rare_class: str = ""  # made rare in training, to study rare findings; empty: none
    rare_share: float = 0.0  # of that class's training patients, kept
    rare_patients: int = 0  # or so many of them, over all sites

    def __post_init__(self) -> None:
        require(len(self.size) == 2 and min(self.size) >= 8, "data.size", self.size, "two numbers of at least 8")
        require(1 <= self.sites <= 1000, "data.sites", self.sites, "from 1 to 1000")
        words = f"from 0 to data.sites, {self.sites}"
        require(0 <= self.largest_sites <= self.sites, "data.largest_sites", self.largest_sites, words)
        drawn = not self.largest_sites or self.partition != "natural"
        require(drawn, "data.largest_sites", self.largest_sites, "0 with natural sites: name those in data.only")
        require(self.alpha > 0, "data.alpha", self.alpha, "above 0")
        require(0 <= self.test_share < 1, "data.test_share", self.test_share, "from 0 to below 1")
        require(self.min_patients >= 1, "data.min_patients", self.min_patients, "at least 1")
        require(len(self.mask_classes) != 1, "data.mask_classes", self.mask_classes, "empty, or background and more")
        require(self.labelled >= -1, "data.labelled", self.labelled, "at least 0, or -1 for all")
        require(0 <= self.rare_share < 1, "data.rare_share", self.rare_share, "from 0 to below 1")
        require(self.rare_patients >= 0, "data.rare_patients", self.rare_patients, "at least 0")
        cuts = (self.rare_share > 0) + (self.rare_patients > 0)
        words = "named together with either data.rare_share or data.rare_patients, or not at all"
        require(cuts == bool(self.rare_class), "data.rare_class", self.rare_class, words)

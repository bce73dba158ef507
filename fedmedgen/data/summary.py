"""What each site holds, in rows for a table; for simulations and for the owner of the data only."""

from collections import Counter
from collections.abc import Mapping

from fedmedgen.data.cases import CaseSet


def table(parts: Mapping[str, CaseSet]) -> list[dict[str, object]]:
    """One row a site: site, patients, images, the count of each class by its name, unlabelled, masks."""
    return [_row(site, part) for site, part in parts.items()]


def _row(site: str, part: CaseSet) -> dict[str, object]:
    labels = Counter(case.label for case in part)
    row: dict[str, object] = {"site": site, "patients": len(part.by_patient()), "images": len(part)}
    row["classes"] = {name: labels[label] for label, name in enumerate(part.classes)}
    row["unlabelled"] = labels[None]
    row["masks"] = sum(case.mask is not None for case in part)
    return row


def notes(cases: CaseSet) -> list[str]:
    """What a user should know of a set that is usable all the same."""
    said: list[str] = []
    unlabelled = sum(case.label is None for case in cases)
    if unlabelled:
        said.append(f"{unlabelled} of {len(cases)} cases have no label: they train the generator without a class")
    if cases.unit == "image" and len(cases):
        said.append("patients are not named, so privacy protects each image, not each patient")
    if cases.mask_classes:
        bare = sum(case.mask is None for case in cases)
        if bare:
            said.append(f"{bare} of {len(cases)} cases have no mask")
    patients = [{(c.site, c.patient) for c in cases.of_split(split) if c.patient} for split in ("train", "test")]
    both = len(patients[0] & patients[1])
    if both:
        said.append(f"{both} patient names occur in both train and test: make sure that they are different people")
    return said

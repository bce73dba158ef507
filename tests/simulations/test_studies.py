"""The studies on real radiographs run to their end, cut to seconds."""

import json
from pathlib import Path

import pytest

from simulations.run import simulate

CUT = ["smoke=true", "rounds=1", "data.max_patients=12", "emission.count=12"]


def run(tmp_path: Path, *words: str) -> dict[str, object]:
    out = simulate([*words, *CUT], out=str(tmp_path / "run"))
    return json.loads((out / "result.json").read_text())


@pytest.mark.real_data
def test_lungs_has_two_natural_sites_with_masks(real_data: Path, tmp_path: Path) -> None:
    result = run(tmp_path, "study=lungs", f"data.root={real_data / 'lungs'}")
    assert list(result["sites"]) == ["montgomery", "shenzhen"]
    assert {site["unit"] for site in result["sites"].values()} == {"patient"}
    assert result["metrics"]["segmentation"]["tstr"]["dice_mean"]["mean"] >= 0


@pytest.mark.real_data
def test_pneumonia_has_four_even_sites_and_says_that_its_unit_is_the_image(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "medmnist" / "pneumoniamnist.npz"
    result = run(tmp_path, "study=pneumonia", f"data.root={root}", "evaluation.enabled=false")
    assert [site["patients_declared"] for site in result["sites"].values()] == [20] * 4
    assert {site["unit"] for site in result["sites"].values()} == {"image"}


@pytest.mark.real_data
def test_dental_skips_classification_and_says_why(real_data: Path, tmp_path: Path) -> None:
    result = run(tmp_path, "study=dental", f"data.root={real_data / 'dental'}")
    assert "label" in result["metrics"]["classification"]["skipped"]
    assert "skipped" not in result["metrics"]["segmentation"]


@pytest.mark.real_data
def test_few_labels_trains_at_four_sites_and_fine_tunes_where_the_masks_are(real_data: Path, tmp_path: Path) -> None:
    more = f"data.unlabelled=[{real_data / 'pneumonia'},{real_data / 'covid'}]"
    words = ("study=few-labels", "privacy=none", f"data.root={real_data / 'lungs'}", more)
    result = run(tmp_path, *words, "segmenter.local_steps=2", "evaluation.rows=[trtr]")
    assert {name: site["labelled_declared"] > 0 for name, site in result["sites"].items()} == {
        "guangzhou": False, "hannover": False, "montgomery": False, "shenzhen": True,
    }  # fmt: skip
    assert {site["unit"] for site in result["sites"].values()} == {"patient"}  # though each names patients otherwise
    assert 0 < result["metrics"]["federated_segmenter"]["dice_mean"] <= 1

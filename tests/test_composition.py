"""Studies compose; what is misspelt names the nearest."""

from pathlib import Path

import pytest

from fedmedgen.composition import compose, studies
from fedmedgen.errors import SettingsError


@pytest.mark.parametrize("study", sorted(studies()))
def test_every_study_composes_and_says_what_it_is_for(study: str) -> None:
    assert compose([f"study={study}"]).study == study
    assert len(studies()[study]) > 20


def test_later_words_win_over_the_study() -> None:
    settings = compose(["study=lungs", "privacy=eps1", "rounds=3", "data.size=[28,28]"])
    assert (settings.privacy.epsilon, settings.rounds, settings.data.size) == (1.0, 3, (28, 28))


def test_smoke_cuts_a_study_and_the_users_words_still_win() -> None:
    settings = compose(["study=demo", "smoke=true", "rounds=5"])
    assert settings.rounds == 5
    assert settings.data.max_patients < 100


def test_relative_paths_resolve_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = compose(["study=folder", "data.root=mine", "prior.roots=[theirs,more/npz]"])
    assert settings.data.root == str(tmp_path / "mine")
    assert settings.prior.roots == (str(tmp_path / "theirs"), str(tmp_path / "more" / "npz"))
    assert settings.out == str(tmp_path / "runs" / "folder-0")


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("study=lung", "lungs"), ("privacy=eps11", "eps1"), ("privacy.epsilom=3", "privacy.epsilon"), ("seeds=3", "seed")],
)
def test_a_misspelt_word_names_the_nearest(word: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=f"did you mean '{nearest}"):
        compose([word])


def test_a_word_without_a_value_is_refused() -> None:
    with pytest.raises(SettingsError, match="expected key=value"):
        compose(["lungs"])

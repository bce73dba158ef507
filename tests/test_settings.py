"""The schema: unknown keys, wrong types and values out of range are refused in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedgen.errors import SettingsError
from fedmedgen.settings import Settings


def test_settings_survive_a_round_trip_through_plain_values() -> None:
    settings = Settings.from_mapping({"data": {"size": [28, 28]}, "privacy": {"epsilon": 3}})
    assert Settings.from_mapping(settings.to_mapping()) == settings


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"data": {"siz": 1}}, "did you mean 'size'"),
        ({"privacy": {"epsilon": -1}}, "above 0"),
        ({"privacy": {"epsilon": "ten"}}, "a number"),
        ({"privacy": {"epsilon": float("nan")}}, "a finite number"),
        ({"privacy": {"sample_rate": 1.5}}, "at most 1"),
        ({"privacy": {"mode": "patients"}}, "did you mean 'patient'"),
        ({"rounds": True}, "a whole number"),
        ({"rounds": 2.5}, "a whole number"),
        ({"data": {"size": 64}}, "a list"),
        ({"data": {"size": [64, 64, 64]}}, "two numbers"),
        ({"data": {"mask_classes": ["lung"]}}, "background and more"),
        ({"generator": {"attention": [True]}}, "one word a level"),
        ({"data": 3}, "a group of settings"),
        ({"statistics": {"share": 1.1}}, "from 0 to 1"),
        ({"statistics": {"share": -0.1}}, "from 0 to 1"),
        ({"statistics": {"features": 7}}, "an even number"),
        ({"statistics": {"kind": "moment"}}, "did you mean 'moments'"),
        (
            {"statistics": {"share": 1}, "curriculum": {"steps": 5}, "data": {"mask_classes": ["background", "lung"]}},
            "segmenter.rounds must be 0",
        ),
        ({"statistics": {"share": 1}, "segmenter": {"rounds": 0}}, "curriculum.steps must be above 0"),
        ({"generator": {"family": "moments"}}, "statistics.share must be 1"),
        ({"generator": {"family": "moments"}, "statistics": {"share": 0.5}}, "statistics.share must be 1"),
        ({"curriculum": {"steps": 5}}, "without a release"),
        ({"rounds": 0}, "0 with a curriculum and a segmenter"),
        ({"statistics": {"rounds": 2}}, "without a release"),
        ({"prior": {"phantoms": -1}}, "at least 0"),
    ],
)
def test_a_bad_setting_is_refused_in_words(mapping: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings.from_mapping(mapping)


@given(st.text(min_size=1, max_size=12).filter(lambda key: key not in Settings().to_mapping()))
def test_no_unknown_key_passes(key: str) -> None:
    with pytest.raises(SettingsError, match="unknown setting"):
        Settings.from_mapping({key: 1})

"""What a report says of the noise that hides a patient."""

from typing import Any

import pytest

from fedmedgen.reporting import claims


@pytest.mark.parametrize(
    ("sums", "right", "wrong"),
    [
        (None, "Gaussian noise of 1.5", "Skellam"),
        ({"masked": True}, "all sites together add Skellam noise of 1.5", "in the clear"),
        ({"masked": False}, "each site adds Skellam noise of 1.5", "under masks"),
    ],
)
def test_who_adds_the_noise_of_a_step_and_who_sees_its_sum(sums: dict[str, Any] | None, right: str, wrong: str) -> None:
    privacy = {"noise_multiplier": 1.5, "sample_rate": 0.1, "clip_norm": 1.0, "secure_sum": sums}
    said = " ".join(words for _, words in claims._rounds(privacy, "patient"))
    assert right in said
    assert wrong not in said

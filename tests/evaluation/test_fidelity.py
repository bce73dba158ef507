"""Distances in feature space, and the floor beside them."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np

from fedmedgen.data.cases import CaseSet
from fedmedgen.evaluation.fidelity import compare, fidelity, halves

Make = Callable[..., CaseSet]


def test_like_cases_are_near_the_floor_and_noise_is_far(discs: Make) -> None:
    real = discs(64)
    near = fidelity(discs(32, seed=1), real, seed=0, max_cases=100)
    draw = np.random.default_rng(0)
    noise = [replace(case, image=draw.uniform(-1, 1, (1, 16, 16)).astype(np.float32)) for case in discs(32)]
    far = fidelity(real.with_cases(noise), real, seed=0, max_cases=100)
    assert near["fd"] < 2 * near["floor"]["fd"]
    assert far["fd"] > 5 * far["floor"]["fd"]
    assert far["kid"] > near["kid"]
    assert far["coverage"] < near["coverage"]
    assert near["n"] == 32


def test_the_two_halves_share_no_patient(discs: Make) -> None:
    cases = discs(30)
    first, second = halves(cases, np.random.default_rng(0))
    patients = [{cases.cases[place].patient for place in side} for side in (first, second)]
    assert not patients[0] & patients[1]
    assert sorted([*first, *second]) == list(range(30))


def test_fd_of_shifted_features_is_the_squared_shift() -> None:
    features = np.random.default_rng(0).standard_normal((400, 112)).astype(np.float32)
    found = compare(features + 1, features, seed=0)
    assert abs(found["fd"] - 112) < 0.5


def test_the_same_seed_gives_the_same_numbers_and_nothing_is_printed(discs: Make) -> None:
    said = io.StringIO()
    with redirect_stdout(said):
        first = fidelity(discs(14, seed=1), discs(28), seed=5, max_cases=100)
        again = fidelity(discs(14, seed=1), discs(28), seed=5, max_cases=100)
    assert first == again
    assert said.getvalue() == ""


def test_too_few_cases_say_so(discs: Make) -> None:
    assert "got 3 and 30" in fidelity(discs(3), discs(30), seed=0, max_cases=100)["skipped"]

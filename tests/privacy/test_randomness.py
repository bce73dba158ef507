"""The stream is uniform, normal, never the same twice, and repeatable only where it was seeded."""

import copy
import os
import pickle

import numpy as np
import pytest
from scipy import stats

from fedmedgen.privacy.randomness import Stream


def test_uniform_numbers_are_uniform_and_never_zero_or_one() -> None:
    numbers = Stream.seeded(1, "uniform").uniform(200_000)
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3


def test_normal_numbers_are_standard_normal_into_the_tails() -> None:
    numbers = Stream.seeded(2, "normal").normal_float64(1_000_001)
    assert len(numbers) == 1_000_001
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    for limit in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(limit) * len(numbers)
        assert abs(np.sum(np.abs(numbers) > limit) - expected) < 5 * np.sqrt(expected)


def test_normal_numbers_are_not_correlated_with_their_neighbours() -> None:
    numbers = Stream.seeded(3).normal_float64(1 << 17)
    for lag in (1, 1 << 15, 1 << 16):
        assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 5 / np.sqrt(len(numbers) - lag)


def test_the_extreme_words_of_the_keystream_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream.system()
    monkeypatch.setattr(stream, "_bytes", lambda count: (b"\x00" * 8 + b"\xff" * 8)[:count])
    low, high = stream.uniform(2)
    assert 0 < low < 1e-15
    assert 1 - 1e-15 < high < 1


def test_two_system_streams_share_no_number() -> None:
    first, second = Stream.system().uniform(1000), Stream.system().uniform(1000)
    assert not set(first) & set(second)


def test_one_stream_never_repeats_a_number() -> None:
    stream = Stream.system()
    assert len({*stream.uniform(1000), *stream.uniform(1000)}) == 2000


def test_a_seeded_stream_is_repeatable_by_name_and_seed() -> None:
    numbers = Stream.seeded(7, "site-1", 3).normal(100)
    assert numbers.equal(Stream.seeded(7, "site-1", 3).normal(100))
    assert not numbers.equal(Stream.seeded(7, "site-1", 4).normal(100))
    assert not numbers.equal(Stream.seeded(8, "site-1", 3).normal(100))


def test_a_stream_says_whether_it_was_seeded() -> None:
    assert Stream.seeded(0).is_seeded
    assert not Stream.system().is_seeded


def test_a_forked_process_draws_other_noise_than_its_parent() -> None:
    stream = Stream.system()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, stream.uniform(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reading, 32))
    assert not set(theirs) & set(stream.uniform(4))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_stream_can_not_be_copied_or_stored(duplicate: object) -> None:
    with pytest.raises(TypeError, match="drawn twice"):
        duplicate(Stream.system())  # type: ignore[operator]


def test_generators_for_augmentation_differ_from_call_to_call() -> None:
    stream = Stream.seeded(0)
    assert stream.torch_generator().initial_seed() != stream.torch_generator().initial_seed()


def test_a_child_of_the_same_number_as_its_parent_draws_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container of its own a child may bear its parent's process number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    stream = Stream.system()
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, stream.normal_float64(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert not np.array_equal(np.frombuffer(os.read(read, 32)), stream.normal_float64(4))

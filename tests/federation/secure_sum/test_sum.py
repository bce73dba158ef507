"""The sum is that of the plain vectors, whoever is lost; below the threshold there is none."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedmedgen.errors import FederationError, ReplyError, SettingsError
from fedmedgen.federation.secure_sum import ring
from fedmedgen.federation.secure_sum.party import Party

PHASES = ("advertise", "share", "mask", "agree", "unmask")


@pytest.mark.parametrize("sites", [3, 4, 10, 20])
def test_the_sum_is_that_of_the_plain_vectors(stage: Any, sites: int) -> None:
    play = stage(sites)
    assert np.array_equal(play.run(), play.plain())


@pytest.mark.parametrize("sites", [3, 4, 10, 20])
def test_with_masks_off_the_same_code_gives_the_same_sum_of_vectors_in_the_clear(stage: Any, sites: int) -> None:
    play, hidden = stage(sites, masked=False), stage(sites)
    assert np.array_equal(play.run(), hidden.run())
    for site, vector in play.vectors.items():
        assert np.array_equal(ring.to_whole(play.masked[site], 3), vector)
        assert not np.array_equal(ring.to_whole(hidden.masked[site], 3), vector)


@pytest.mark.parametrize(("colluders", "threshold"), [(1, 5), (3, 5), (2, 4)])
def test_masks_come_off_only_where_each_site_adds_all_of_the_noise(stage: Any, colluders: int, threshold: int) -> None:
    with pytest.raises(SettingsError, match=r"federation\.colluders.*4, all other sites"):
        replace(stage(5).terms, colluders=colluders, threshold=threshold, masked=False)
    assert replace(stage(5).terms, colluders=4, threshold=5, masked=False).shared.share == 1


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_loss_of_five_sites_in_a_phase_ends_in_the_sum_of_the_rest_or_in_none(
    stage: Any, phase: str, count: int
) -> None:
    for gone in itertools.combinations(range(5), count):
        play = stage(5, threshold=4, lost={f"site-{number:02}": phase for number in gone})
        if count > 1:
            with pytest.raises(FederationError, match="must"):
                play.run()
            continue
        assert np.array_equal(play.run(), play.plain())
        assert len(play.collecting.finished) == (5 if phase in ("agree", "unmask") else 4)


@pytest.mark.parametrize("phases", list(itertools.product(PHASES, PHASES)))
def test_every_pair_of_losses_of_seven_sites_in_any_two_phases_ends_in_the_sum_of_the_rest(
    stage: Any, phases: tuple[str, str]
) -> None:
    play = stage(7, threshold=5, lost={"site-01": phases[0], "site-04": phases[1]})
    assert np.array_equal(play.run(), play.plain())


def test_fewer_openings_than_the_threshold_give_no_sum(stage: Any) -> None:
    play = stage(5, threshold=4)
    play.run()
    for site in ("site-00", "site-01"):
        del play.collecting.openings[site]
    with pytest.raises(FederationError, match="3 of 5 sites answered 'unmask'; 4 must"):
        play.collecting.sum()


def test_a_false_share_is_found(stage: Any) -> None:
    play = stage(5, threshold=4)
    play.run()
    opening = play.collecting.openings["site-02"]
    changed = {**opening.seeds, "site-00": f"{int(opening.seeds['site-00'], 16) ^ 1:066x}"}
    play.collecting.openings["site-02"] = opening._replace(seeds=changed)
    with pytest.raises(ReplyError, match="contradict"):
        play.collecting.sum()


def uniform(numbers: ring.Numbers, width: int) -> float:
    """The p-value of the bytes that would travel being uniform."""
    return float(stats.chisquare(np.bincount(ring.pack(numbers, width), minlength=256)).pvalue)


@pytest.mark.parametrize(
    "missing", list(itertools.chain.from_iterable(itertools.combinations(range(1, 5), n) for n in range(5)))
)
def test_what_is_seen_of_one_site_is_uniform_whatever_else_is_known(stage: Any, missing: tuple[int, ...]) -> None:
    """A vector of zeros, the masks taken off that it shares with sites whose keys are known: all but `missing`.

    While its own mask's seed isn't opened, or one honest site is there, all is uniform.
    """
    play = stage(5, length=20_000)
    play.vectors["site-00"][:] = 0
    for phase in (play.advertise, play.share, play.mask):
        phase()
    seen, party = play.masked["site-00"], play.parties["site-00"]
    known = [f"site-{number:02}" for number in range(1, 5) if number not in missing]
    assert uniform(without(play, seen, known, own=False), 3) > 1e-6
    if missing:
        assert uniform(without(play, seen, known, own=True), 3) > 1e-6
    else:  # everything is known: then, and only then, the zeros are found
        assert not without(play, seen, known, own=True).any()
    assert party.seed


def without(play: Any, seen: ring.Numbers, known: list[str], *, own: bool) -> ring.Numbers:
    """What remains of a masked vector for who knows the masking keys of some sites, and perhaps the own mask's seed."""
    from fedmedgen.federation.secure_sum.masks import added
    from fedmedgen.federation.secure_sum.party import mask_key

    first: Party = play.parties["site-00"]
    public = bytes.fromhex(play.collecting.adverts["site-00"].masking)
    masks = [
        (mask_key(play.terms, bytes.fromhex(play.parties[site].masking), public, site, "site-00"), False)
        for site in known
    ]
    return ring.from_whole(
        ring.to_whole(added(seen, [*masks, *([(bytes.fromhex(first.seed), False)] if own else [])], 3), 3), 3
    )


def test_the_masks_of_two_sums_have_nothing_in_common(stage: Any) -> None:
    first, second = stage(4, length=2000), stage(4, length=2000)
    for play in (first, second):
        play.run()
    difference = first.masked["site-00"] - second.masked["site-00"]
    assert uniform(difference - ring.from_whole(first.vectors["site-00"] - second.vectors["site-00"], 3), 3) > 1e-6

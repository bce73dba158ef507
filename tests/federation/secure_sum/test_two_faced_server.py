"""A server that tells each site of other sites: what it may take the masks off is always of enough sites at once.

By the rules that `Party` keeps: a site adds a mask for each site whose shares it holds, at least threshold - 1 others;
it signs one list, of sites whose shares it holds; secrets are opened to who shows threshold signatures under that list.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedgen.privacy.shared_noise import SharedNoise

Held = dict[int, set[int]]


def open_sums(colluders: int, listed: set[int], held: Held) -> np.ndarray:
    """Weights of the honest sites' vectors, a row for each independent sum without any mask that is still closed.

    Sites below `colluders` collude; of the listed, seeds are open and keys closed; of the others it is the other way.
    """
    honest = sorted(site for site in listed if site >= colluders)
    pairs = [pair for pair in itertools.combinations(honest, 2) if pair[1] in held[pair[0]] or pair[0] in held[pair[1]]]
    masks = np.zeros((len(pairs), len(honest)))
    for row, pair in enumerate(pairs):
        for one, other, sign in ((*pair, 1), (*pair[::-1], -1)):
            if other in held[one]:
                masks[row, honest.index(one)] = sign
    if not pairs:
        return np.eye(len(honest))
    _, sizes, rows = np.linalg.svd(masks)
    return rows[int((sizes > 1e-9).sum()) :]


@st.composite
def games(draw: st.DrawFn) -> tuple[int, int, int, set[int], Held]:
    sites = draw(st.integers(3, 8))
    colluders = draw(st.integers(1, sites - 1))
    least = (sites + colluders) // 2 + 1
    threshold = draw(st.integers(least, max(least, sites)).filter(lambda number: number <= sites))
    everyone = list(range(sites))
    listed = set(draw(st.permutations(everyone))[: draw(st.integers(threshold, sites))])
    held = {}
    for site in range(colluders, sites):
        others = draw(st.permutations([one for one in everyone if one != site]))
        held[site] = {site, *others[: draw(st.integers(threshold - 1, sites - 1))]}
        if draw(st.booleans()):
            held[site] |= listed
    return sites, colluders, threshold, listed, held


@settings(max_examples=1500, deadline=None)
@given(games())
def test_every_sum_that_opens_holds_all_honest_signers_with_one_weight(
    game: tuple[int, int, int, set[int], Held],
) -> None:
    sites, colluders, threshold, listed, held = game
    signers = [site for site in sorted(listed) if site >= colluders and listed <= held[site]]
    if len(signers) < threshold - colluders:
        return  # too few signatures: nothing is opened
    rows = open_sums(colluders, listed, held)
    honest = sorted(site for site in listed if site >= colluders)
    if not len(rows):
        return  # a mask that only one side has added stays for ever
    weights = rows[:, [honest.index(site) for site in signers]]
    assert len(rows) == 1
    assert weights[0] == pytest.approx(weights[0, 0], abs=1e-9)
    assert abs(weights[0, 0]) > 1e-6
    share = SharedNoise(sites=sites, threshold=threshold, colluders=colluders).share
    assert len(signers) * share >= 1 - 1e-12  # so all the noise that is promised is in it


def test_a_threshold_of_no_more_than_half_would_not_do() -> None:
    """Two groups of honest sites that know nothing of each other, and a colluder in both."""
    listed = {0, 1, 2, 3, 4}
    held = {1: {0, 1, 2}, 2: {0, 1, 2}, 3: {0, 3, 4}, 4: {0, 3, 4}}
    assert len(open_sums(1, listed, held)) == 2

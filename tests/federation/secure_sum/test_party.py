"""What a site refuses: a server in the middle, replays, swaps, two lists, both secrets of one site."""

import itertools
from typing import Any

import pytest

from fedmedgen.errors import PolicyError
from fedmedgen.federation.secure_sum import keys
from fedmedgen.federation.secure_sum.party import Advert, Party, _advertised, _text


def shared(stage: Any, sites: int = 5, threshold: int = 4) -> Any:
    play = stage(sites, threshold=threshold)
    play.advertise()
    play.share()
    return play


def masked(stage: Any, sites: int = 5, threshold: int = 4) -> Any:
    play = shared(stage, sites, threshold)
    play.mask()
    return play


def test_keys_that_a_server_puts_in_place_of_a_sites_are_refused(stage: Any) -> None:
    play = stage()
    play.advertise()
    _, own = Party.begin(play.terms, "site-01", b"\1" * 32)  # signed by the server's own identity
    with pytest.raises(PolicyError, match="aren't signed by the identity that is pinned here"):
        play.parties["site-00"].share({**play.collecting.adverts, "site-01": own}, play.pinned)


def test_keys_of_one_site_are_refused_as_anothers(stage: Any) -> None:
    play = stage()
    play.advertise()
    swapped = {**play.collecting.adverts, "site-01": play.collecting.adverts["site-02"]}
    with pytest.raises(PolicyError, match="aren't signed"):
        play.parties["site-00"].share(swapped, play.pinned)


@pytest.mark.parametrize("change", ["session", "task", "threshold", "colluders", "attempt", "sites"])
def test_keys_advertised_for_other_terms_are_refused(stage: Any, change: str) -> None:
    """So all sites that deal out shares to each other count on the same noise, threshold and roster."""
    play = stage(6, threshold=5)
    play.advertise()
    values = {"session": "f" * 32, "task": "f" * 64, "threshold": 6, "colluders": 2, "attempt": 2}
    others = {
        **play.terms.to_mapping(),
        **({"sites": play.terms.sites[:5]} if change == "sites" else {change: values[change]}),
    }
    _, advert = Party.begin(type(play.terms).from_mapping(others), "site-01", play.identities["site-01"])
    with pytest.raises(PolicyError, match="aren't signed"):
        play.parties["site-00"].share({**play.collecting.adverts, "site-01": advert}, play.pinned)


def test_a_site_whose_identity_isnt_pinned_is_no_company(stage: Any) -> None:
    play = stage()
    play.advertise()
    pinned = {site: key for site, key in play.pinned.items() if site != "site-03"}
    with pytest.raises(PolicyError, match="isn't pinned here"):
        play.parties["site-00"].share(play.collecting.adverts, pinned)


def test_the_own_keys_changed_or_left_out_are_refused(stage: Any) -> None:
    play = stage()
    play.advertise()
    _, other = Party.begin(play.terms, "site-00", play.identities["site-00"])
    without = {site: advert for site, advert in play.collecting.adverts.items() if site != "site-00"}
    for adverts in ({**without, "site-00": other}, without):
        party = Party.from_json(play.parties["site-00"].to_json())
        with pytest.raises(PolicyError, match="own keys came back changed"):
            party.share(adverts, play.pinned)


def test_fewer_sites_than_the_threshold_get_no_shares_and_no_vector(stage: Any) -> None:
    play = stage(5, threshold=4)
    play.advertise()
    few = {site: advert for site, advert in play.collecting.adverts.items() if site < "site-03"}
    with pytest.raises(PolicyError, match="3 sites are left of the 4"):
        play.parties["site-00"].share(few, play.pinned)
    play = shared(stage)
    with pytest.raises(PolicyError, match="3 sites are left of the 4"):
        play.parties["site-00"].receive(
            {site: play.collecting.sealed[site]["site-00"] for site in ("site-01", "site-02")}
        )


def test_shares_that_were_changed_swapped_or_sealed_for_another_are_refused(stage: Any) -> None:
    play = shared(stage)
    good, sealed = play.collecting.for_site("site-00"), play.collecting.sealed
    first = "B" if good["site-01"][0] == "A" else "A"
    for bad in (
        {**good, "site-01": first + good["site-01"][1:]},
        {**good, "site-01": good["site-02"], "site-02": good["site-01"]},
        {**good, "site-01": sealed["site-01"]["site-02"]},
        {**good, "site-01": sealed["site-00"]["site-01"]},
    ):
        with pytest.raises(PolicyError, match="changed on its way"):
            Party.from_json(play.parties["site-00"].to_json()).receive(bad)


def test_each_phase_is_answered_once_and_in_its_turn(stage: Any) -> None:
    play = masked(stage)
    party, adverts = play.parties["site-00"], play.collecting.adverts
    with pytest.raises(PolicyError, match="past 'advertise'"):
        party.share(adverts, play.pinned)
    with pytest.raises(PolicyError, match="past 'share'"):
        party.receive(play.collecting.for_site("site-00"))
    with pytest.raises(PolicyError, match="past 'receive'"):
        party.masked(play.masked["site-00"])
    with pytest.raises(PolicyError, match="or not there yet"):
        party.unmask({}, play.pinned)
    play.agree()
    with pytest.raises(PolicyError, match="past 'mask'"):
        party.agree(play.collecting.finished[1:], play.identities["site-00"])
    play.unmask()
    with pytest.raises(PolicyError, match="past 'agree'"):
        party.unmask(play.collecting.signatures, play.pinned)


def test_a_phase_that_failed_is_not_tried_again(stage: Any) -> None:
    play = masked(stage)
    party = play.parties["site-00"]
    with pytest.raises(PolicyError, match="the list must"):
        party.agree(["site-01"], play.identities["site-00"])
    with pytest.raises(PolicyError, match="past 'mask'"):
        party.agree(play.collecting.finished, play.identities["site-00"])


def test_a_server_that_says_a_site_is_lost_learns_no_seed_of_it_and_its_late_vector_stays_hidden(stage: Any) -> None:
    """Shares of one secret of it are opened: of its key, since it is said to be lost, and then never of its seed."""
    play = masked(stage)
    assert "site-04" in play.masked  # its vector did come
    listed = [site for site in play.collecting.finished if site != "site-04"]
    signatures = {site: play.parties[site].agree(listed, play.identities[site]) for site in listed}
    openings = [play.parties[site].unmask(signatures, play.pinned) for site in listed]
    assert all("site-04" in opening.keys and "site-04" not in opening.seeds for opening in openings)
    with pytest.raises(PolicyError, match="the list must"):
        play.parties["site-04"].agree(listed, play.identities["site-04"])


def test_whatever_list_is_signed_both_secrets_of_one_site_are_never_opened_by_anybody(stage: Any) -> None:
    names = [f"site-{number:02}" for number in range(5)]
    for count in (4, 5):
        for listed in itertools.combinations(names, count):
            play = masked(stage)
            signatures = {s: play.parties[s].agree(listed, play.identities[s]) for s in listed}
            for site in listed:
                opening = play.parties[site].unmask(signatures, play.pinned)
                assert set(opening.seeds) == set(listed)
                assert set(opening.keys) == set(names) - set(listed)


def test_a_server_with_a_colluder_cant_have_two_lists_signed_by_enough(stage: Any) -> None:
    """Five sites, threshold 4: site-04 sides with the server and signs both lists. Neither gets four signatures."""
    play = masked(stage)
    lists = (["site-00", "site-01", "site-02", "site-04"], ["site-00", "site-01", "site-03", "site-04"])
    told = {"site-00": lists[0], "site-01": lists[1], "site-02": lists[0], "site-03": lists[1]}
    signatures: dict[int, dict[str, str]] = {0: {}, 1: {}}
    for site, listed in told.items():
        signatures[lists.index(listed)][site] = play.parties[site].agree(listed, play.identities[site])
    for number, listed in enumerate(lists):
        traitor = Party.from_json(play.parties["site-04"].to_json())
        signatures[number]["site-04"] = traitor.agree(listed, play.identities["site-04"])
    for site, listed in told.items():
        with pytest.raises(PolicyError, match="3 sites signed the list; 4 must"):
            play.parties[site].unmask(signatures[lists.index(listed)], play.pinned)


def test_signatures_by_one_site_under_many_names_or_under_another_list_dont_count(stage: Any) -> None:
    play = masked(stage)
    play.agree()
    own = play.collecting.signatures["site-01"]
    with pytest.raises(PolicyError, match="1 sites signed"):
        play.parties["site-00"].unmask(dict.fromkeys(play.collecting.finished, own), play.pinned)


def test_after_the_end_no_secret_is_left(stage: Any) -> None:
    play = masked(stage)
    before = [play.parties["site-00"].seed, play.parties["site-00"].masking, play.parties["site-00"].sealing]
    play.agree()
    play.unmask()
    text = play.parties["site-00"].to_json()
    assert not any(secret in text for secret in before)
    assert not play.parties["site-00"].held


def test_a_key_with_which_everybody_agrees_on_the_same_is_refused() -> None:
    key, _ = keys.fresh()
    with pytest.raises(PolicyError, match="none to agree with"):
        keys.agreed(key, bytes(32), b"mask")


def signed(play: Any, site: str, sealing: str, masking: str) -> Advert:
    """Keys that a site itself puts up, whatever they are."""
    words = _advertised(play.terms, site, bytes.fromhex(sealing), bytes.fromhex(masking))
    return Advert(sealing, masking, keys.sign(play.identities[site], *words).hex())


@pytest.mark.parametrize("which", ["sealing", "masking"])
def test_a_key_that_would_fail_when_the_step_is_paid_is_refused_before(stage: Any, which: str) -> None:
    play = stage()
    play.advertise()
    own = play.collecting.adverts["site-01"]
    changed = own._replace(**{which: bytes(32).hex()})
    bad = signed(play, "site-01", changed.sealing, changed.masking)
    with pytest.raises(PolicyError, match="none to agree with"):
        play.parties["site-00"].share({**play.collecting.adverts, "site-01": bad}, play.pinned)


def test_one_key_in_two_spellings_is_one_key(stage: Any) -> None:
    play = stage()
    play.advertise()
    same = signed(play, "site-01", *(play.collecting.adverts["site-02"][place].upper() for place in (0, 1)))
    with pytest.raises(PolicyError, match="two sites advertise one key"):
        play.parties["site-00"].share({**play.collecting.adverts, "site-01": same}, play.pinned)


@pytest.mark.parametrize("size", [65, 67, 400])
def test_shares_of_another_length_are_refused_before_the_step_is_paid(stage: Any, size: int) -> None:
    """An opening that is too long to leave the site would void the openings of all."""
    play = shared(stage)
    dealer = play.parties["site-01"]
    sealed = keys.seal(dealer._sealing_key("site-01", "site-00"), bytes(size))
    with pytest.raises(PolicyError, match=f"site-01 dealt out {size} bytes"):
        play.parties["site-00"].receive({**play.collecting.for_site("site-00"), "site-01": _text(sealed)})


def test_an_advert_is_bound_to_both_of_its_keys(stage: Any) -> None:
    play = stage()
    play.advertise()
    one, other = play.collecting.adverts["site-01"], play.collecting.adverts["site-02"]
    for bad in (Advert(one.masking, one.sealing, one.signature), Advert(one.sealing, other.masking, one.signature)):
        with pytest.raises(PolicyError, match="aren't signed"):
            Party.from_json(play.parties["site-00"].to_json()).share(
                {**play.collecting.adverts, "site-01": bad}, play.pinned
            )

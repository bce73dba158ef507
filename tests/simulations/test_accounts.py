"""What a campaign of faults counts: each count finds what it is there to find."""

from typing import Any

from simulations.campaigns.accounts import unlisted, unpaid


def sent(request: str, sha256: str, **words: Any) -> dict[str, Any]:
    return {"arrays": 1, "bytes": 100, "request": request, "sha256": sha256, "words": {"site": "north", **words}}


def row(size: int, status: str = "done") -> dict[str, str]:
    return {"round": "1", "bytes_up": str(size), "status": status}


def test_a_wasted_reservation_hides_no_lost_spend() -> None:
    log = [sent("a", "1"), sent("b", "2"), sent("b", "2")]
    assert unpaid(log, {"a": 1, "b": 1}) == []
    (words,) = unpaid(log, {"a": 1, "wasted": 5})  # the old count: 2 releases, 6 steps
    assert words == "1 different releases to request b, 0 reservations"


def test_a_second_release_to_a_request_needs_a_second_reservation() -> None:
    log = [sent("a", "1"), sent("a", "2")]
    assert unpaid(log, {"a": 2}) == []
    assert unpaid(log, {"a": 1, "b": 1}) == ["2 different releases to request a, 1 reservations"]


def test_what_came_at_the_server_must_be_what_the_site_says_it_sent() -> None:
    log = [{**sent("a", "1", status="done"), "words": {"site": "north", "status": "done", "num-examples": 30.0}}]
    size = 100 + len("sitenorth") + len("statusdone") + 8
    assert unlisted(log, [row(size), row(0)]) == []
    (words,) = unlisted(log, [row(size + 9)])
    assert f"{size + 9} bytes came" in words
    word = len("site") + len("statusfault")
    assert unlisted(log, [row(word, "fault")]) == []
    assert len(unlisted(log, [row(word + 1, "fault"), row(word), row(size + 9, "fault")])) == 3
    assert unlisted([{**log[0], "words": {"loss": 1.0, "patients": "p1, p2"}}], []) == ["patients"]

"""A ledger counts every plan in full before it runs, and refuses what the site's limit doesn't allow."""

import json
import multiprocessing
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedmedgen.errors import BudgetError, LedgerError
from fedmedgen.privacy import ledger as ledger_module
from fedmedgen.privacy.budget import Plan
from fedmedgen.privacy.chain import Head
from fedmedgen.privacy.ledger import Ledger, Limit, load_or_create_key

Opened = Callable[[], Ledger]
LIMIT = Limit(epsilon=10.0, delta=1e-3)


def open_plan(ledger: Ledger, plan: Plan, run: str = "run-1", epsilon: float = 4.0, limit: Limit = LIMIT) -> None:
    ledger.open_plan(run, plan.digest, plan.to_mapping(), epsilon=epsilon, delta=plan.delta, limit=limit)


def test_a_plan_counts_in_full_from_the_moment_it_is_opened(open_ledger: Opened, plan: Plan) -> None:
    open_plan(open_ledger(), plan)
    spent = open_ledger().spent()
    assert (spent.epsilon, spent.delta) == (4.0, 1e-5)
    assert open_ledger().steps_reserved("run-1", plan.digest) == {"generator": 0, "segmenter": 0}


def test_opening_the_same_plan_in_the_same_run_again_is_free(open_ledger: Opened, plan: Plan) -> None:
    for _ in range(3):
        open_plan(open_ledger(), plan)
    assert open_ledger().spent().epsilon == 4.0


def test_another_run_or_a_changed_plan_adds(open_ledger: Opened, plan: Plan) -> None:
    open_plan(open_ledger(), plan)
    open_plan(open_ledger(), plan, run="run-2")
    open_plan(open_ledger(), replace(plan, delta=2e-5), epsilon=1.0)
    spent = open_ledger().spent()
    assert spent.epsilon == 9.0
    assert spent.delta == pytest.approx(4e-5)


def test_a_plan_that_would_exceed_the_lifetime_epsilon_is_refused_and_costs_nothing(
    open_ledger: Opened, plan: Plan
) -> None:
    open_plan(open_ledger(), plan, epsilon=7.0)
    with pytest.raises(BudgetError, match=r"wants epsilon 4, but 7 of this site's 10 is spent: 3 is left"):
        open_plan(open_ledger(), plan, run="run-2")
    assert open_ledger().spent().epsilon == 7.0
    open_plan(open_ledger(), plan, run="run-3", epsilon=3.0)


def test_a_plan_that_would_exceed_the_lifetime_delta_is_refused(open_ledger: Opened, plan: Plan) -> None:
    limit = Limit(epsilon=100.0, delta=1.5e-5)
    open_plan(open_ledger(), plan, limit=limit)
    with pytest.raises(BudgetError, match="delta"):
        open_plan(open_ledger(), plan, run="run-2", limit=limit)


def test_decimal_epsilons_may_fill_the_limit_to_the_last_bit(open_ledger: Opened, plan: Plan) -> None:
    limit = Limit(epsilon=0.3, delta=1e-3)
    for run in ("a", "b", "c"):
        open_plan(open_ledger(), plan, run=run, epsilon=0.1, limit=limit)
    with pytest.raises(BudgetError):
        open_plan(open_ledger(), plan, run="d", epsilon=1e-6, limit=limit)


def test_the_limit_of_the_day_counts_not_the_one_of_the_first_plan(open_ledger: Opened, plan: Plan) -> None:
    open_plan(open_ledger(), plan, limit=Limit(100.0, 1.0))
    with pytest.raises(BudgetError):
        open_plan(open_ledger(), plan, run="run-2", limit=Limit(5.0, 1.0))


@pytest.mark.parametrize("lowered", [Limit(7.9, 1e-3), Limit(10.0, 1.9e-5)], ids=["epsilon", "delta"])
def test_a_limit_lowered_below_what_is_spent_stops_open_plans_until_it_is_raised(
    open_ledger: Opened, plan: Plan, tmp_path: Path, lowered: Limit
) -> None:
    for run in ("run-1", "run-2"):
        open_plan(open_ledger(), plan, run=run)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(BudgetError, match=r"is spent, above the .* that the site's policy now allows"):
        open_plan(open_ledger(), plan, limit=lowered)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    open_plan(open_ledger(), plan)


def test_a_lowered_limit_of_what_others_together_may_learn_stops_open_plans_too(
    open_ledger: Opened, plan: Plan
) -> None:
    def opened(run: str, alone: float) -> None:
        open_ledger().open_plan(
            run=run, digest=plan.digest, mapping=plan.to_mapping(), epsilon=1.0, delta=1e-5, alone=9.0,
            limit=Limit(10.0, 1e-3, alone),
        )  # fmt: skip

    for run in ("run-1", "run-2"):
        opened(run, 20.0)
    with pytest.raises(BudgetError, match="if all other sites collude, 18 is spent, above the 17"):
        opened("run-1", 17.0)
    opened("run-1", 18.0)


def test_a_plan_exactly_at_the_limit_goes_on(open_ledger: Opened, plan: Plan) -> None:
    limit = Limit(epsilon=0.3, delta=3e-5)
    for _ in range(2):  # the second time all three are open: 0.1 + 0.1 + 0.1 is more than 0.3 by its last bit
        for run in ("a", "b", "c"):
            open_plan(open_ledger(), plan, run=run, epsilon=0.1, limit=limit)
    open_ledger().reserve("a", plan.digest, "generator", 40, "request")
    assert open_ledger().steps_reserved("a", plan.digest)["generator"] == 40


@pytest.mark.parametrize("epsilon", [float("nan"), float("inf"), -1.0])
def test_an_epsilon_that_is_no_amount_is_refused(open_ledger: Opened, plan: Plan, epsilon: float) -> None:
    with pytest.raises(LedgerError, match="finite number"):
        open_plan(open_ledger(), plan, epsilon=epsilon)


@pytest.mark.parametrize("limit", [Limit(float("nan"), 1.0), Limit(10.0, float("inf"))])
def test_a_limit_that_is_no_amount_is_refused(open_ledger: Opened, plan: Plan, limit: Limit) -> None:
    with pytest.raises(LedgerError, match="finite number"):
        open_plan(open_ledger(), plan, limit=limit)


def test_a_digest_of_another_plan_is_refused(open_ledger: Opened, plan: Plan) -> None:
    other = replace(plan, delta=1e-6)
    with pytest.raises(LedgerError, match="digest"):
        open_ledger().open_plan("run", other.digest, plan.to_mapping(), epsilon=1.0, delta=1e-5, limit=LIMIT)


def test_steps_are_spent_before_anything_is_computed_and_never_beyond_the_plan(open_ledger: Opened, plan: Plan) -> None:
    open_plan(open_ledger(), plan)
    for number in range(4):
        open_ledger().reserve("run-1", plan.digest, "generator", 10, f"request-{number}")
    with pytest.raises(BudgetError, match="0 steps left in its plan; 1 wanted"):
        open_ledger().reserve("run-1", plan.digest, "generator", 1, "request-4")
    open_ledger().reserve("run-1", plan.digest, "segmenter", 10, "request-5")
    assert open_ledger().steps_reserved("run-1", plan.digest) == {"generator": 40, "segmenter": 10}


def test_a_reservation_outside_an_open_plan_is_refused(open_ledger: Opened, plan: Plan) -> None:
    open_plan(open_ledger(), plan)
    for run, digest, stage in (("run-2", plan.digest, "generator"), ("run-1", "0" * 64, "generator")):
        with pytest.raises(BudgetError, match="open the plan first"):
            open_ledger().reserve(run, digest, stage, 1, "request")
    with pytest.raises(BudgetError, match="no stage 'statistics'"):
        open_ledger().reserve("run-1", plan.digest, "statistics", 1, "request")


@pytest.mark.parametrize("steps", [0, -5, 1.5, True])
def test_a_number_of_steps_that_is_none_is_refused(open_ledger: Opened, plan: Plan, steps: int) -> None:
    open_plan(open_ledger(), plan)
    with pytest.raises(LedgerError, match="whole number"):
        open_ledger().reserve("run-1", plan.digest, "generator", steps, "request")


def test_a_request_is_unknown_then_reserved_then_complete(open_ledger: Opened, plan: Plan) -> None:
    open_plan(open_ledger(), plan)
    assert open_ledger().find("request") == "unknown"
    open_ledger().reserve("run-1", plan.digest, "generator", 10, "request")
    assert open_ledger().find("request") == "reserved"
    open_ledger().complete("request", "hash of the reply")
    assert open_ledger().find("request") == "complete"
    assert open_ledger().find("another") == "unknown"


def test_a_request_whose_reply_was_lost_costs_its_steps_again(open_ledger: Opened, plan: Plan) -> None:
    open_plan(open_ledger(), plan)
    for _ in range(2):
        open_ledger().reserve("run-1", plan.digest, "generator", 10, "request")
    assert open_ledger().steps_reserved("run-1", plan.digest)["generator"] == 20


def test_only_a_reserved_request_can_be_completed(open_ledger: Opened, plan: Plan) -> None:
    open_plan(open_ledger(), plan)
    with pytest.raises(LedgerError, match="reserve it first"):
        open_ledger().complete("request", "hash")


def try_to_open(folder: Path, run: str, plan: Plan) -> bool:
    ledger = Ledger(folder / "ledger.jsonl", key=load_or_create_key(folder / "key"), head_path=folder / "head")
    try:
        open_plan(ledger, plan, run=run, epsilon=6.0)
    except BudgetError:
        return False
    return True


def try_to_reserve(folder: Path, request: str, plan: Plan) -> bool:
    ledger = Ledger(folder / "ledger.jsonl", key=load_or_create_key(folder / "key"), head_path=folder / "head")
    try:
        ledger.reserve("run-1", plan.digest, "generator", 25, request)
    except BudgetError:
        return False
    return True


def race(attempt: Callable[..., bool], folder: Path, plan: Plan) -> list[bool]:
    with multiprocessing.get_context("fork").Pool(6) as pool:
        return pool.starmap(attempt, [(folder, f"rival-{number}", plan) for number in range(6)], chunksize=1)


def test_of_processes_racing_for_the_last_of_the_budget_exactly_one_wins(tmp_path: Path, plan: Plan) -> None:
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        assert sum(race(try_to_open, folder, plan)) == 1


def test_of_processes_racing_for_the_last_steps_of_a_stage_exactly_one_wins(tmp_path: Path, plan: Plan) -> None:
    key = load_or_create_key(tmp_path / "key")
    ledger = Ledger(tmp_path / "ledger.jsonl", key=key, head_path=tmp_path / "head")
    open_plan(ledger, plan)
    assert sum(race(try_to_reserve, tmp_path, plan)) == 1
    assert ledger.steps_reserved("run-1", plan.digest)["generator"] == 25


def test_a_reader_that_meets_the_very_first_write_sees_nothing_or_all_of_it(
    open_ledger: Opened, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer, read = open_ledger(), open_ledger(), ledger_module.read_head
    looks = []

    def written_meanwhile(path: Path, key: bytes | None) -> Head | None:
        looks.append(path)
        if len(looks) == 1:  # no ledger was found; before the head is looked for, the first plan is opened
            open_plan(writer, plan)
        return read(path, key)

    monkeypatch.setattr(ledger_module, "read_head", written_meanwhile)
    assert reader.spent().epsilon == 4.0


def read_while_written(folder: Path, reads: int) -> None:
    key = load_or_create_key(folder / "key")
    for _ in range(reads):
        assert Ledger(folder / "ledger.jsonl", key=key, head_path=folder / "head").spent().lines <= 1


def test_readers_racing_with_the_very_first_write_refuse_nothing(tmp_path: Path, plan: Plan) -> None:
    fork = multiprocessing.get_context("fork")
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        load_or_create_key(folder / "key")
        readers = [fork.Process(target=read_while_written, args=(folder, 100)) for _ in range(2)]
        for reader in readers:
            reader.start()
        assert try_to_open(folder, "run-1", plan)
        for reader in readers:
            reader.join()
        assert [reader.exitcode for reader in readers] == [0, 0]


def test_every_line_is_json_and_names_what_it_costs(open_ledger: Opened, plan: Plan, tmp_path: Path) -> None:
    open_plan(open_ledger(), plan)
    open_ledger().reserve("run-1", plan.digest, "generator", 10, "request")
    first, second = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert (first["event"], first["epsilon"], first["delta"]) == ("open", 4.0, 1e-5)
    assert Plan.from_mapping(first["mapping"]) == plan
    assert (second["event"], second["steps"], second["stage"]) == ("reserve", 10, "generator")
    assert second["prev"] == first["mac"]


def test_ledger_head_and_key_are_readable_by_their_owner_only(open_ledger: Opened, plan: Plan, tmp_path: Path) -> None:
    open_plan(open_ledger(), plan)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"ledger.jsonl": 0o600, "ledger.head": 0o600, "ledger.key": 0o600}


def test_the_key_is_made_once_and_two_sites_have_different_ones(tmp_path: Path) -> None:
    first = load_or_create_key(tmp_path / "a")
    assert load_or_create_key(tmp_path / "a") == first
    assert load_or_create_key(tmp_path / "b") != first
    assert len(first) == 32


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_or_create_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        load_or_create_key(tmp_path / "key")


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "00" * 31])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(LedgerError, match="64 hexadecimal digits"):
        load_or_create_key(tmp_path / "key")


def test_reading_a_ledger_that_is_not_there_creates_nothing(open_ledger: Opened, tmp_path: Path) -> None:
    assert open_ledger().spent().epsilon == 0
    assert not (tmp_path / "ledger.jsonl").exists()


def test_the_ledger_imports_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import fedmedgen.privacy.ledger\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'fedmedgen'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

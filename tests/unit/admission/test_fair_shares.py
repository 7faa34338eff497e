"""Whose turn it is among tenants, and what is remembered of them."""

from __future__ import annotations

import pytest

from coordinator.admission import fair_shares
from coordinator.admission.fair_shares import MEMORY_S, FairShares

WORK = 10


def turns(shares: FairShares, limit: int = 100, **queues: list[int]) -> str:
    """The tenants in the order of their turns."""
    named = {name: [(name, work) for work in queue] for name, queue in queues.items()}
    return "".join(name for name, _ in shares.in_turn(named, lambda item: item[1], limit))


def join(shares: FairShares, name: str, *queue: int, priority: int = 0) -> None:
    for work in queue:
        shares.joined(name, priority, work)


def serve(shares: FairShares, name: str, *queue: int) -> None:
    for work in queue:
        shares.joined(name, 0, work)
        shares.served(name, 0, work)


def test_tenants_that_wait_take_turns_by_their_work() -> None:
    shares = FairShares()
    join(shares, "a", 10, 10, 10, 10)
    join(shares, "b", 20, 20)
    assert turns(shares, a=[10, 10, 10, 10], b=[20, 20]) == "abaaba"
    assert turns(shares, 3, a=[10, 10, 10, 10], b=[20, 20]) == "aba"


def test_who_comes_late_has_saved_nothing_up_and_owes_nothing() -> None:
    shares = FairShares()
    join(shares, "a", *[WORK] * 20)
    for _ in range(10):
        shares.served("a", 0, WORK)
    join(shares, "b", *[WORK] * 10)
    assert turns(shares, a=[WORK] * 10, b=[WORK] * 10)[:6] == "bababa"


def test_a_debt_is_kept_while_nothing_waits() -> None:
    shares = FairShares()
    serve(shares, "a", WORK)
    shares.settled("a", 5 * WORK, 1.0)  # its answer was longer than was thought
    join(shares, "a", *[WORK] * 8)
    join(shares, "b", *[WORK] * 8)
    assert turns(shares, a=[WORK] * 8, b=[WORK] * 8).startswith("b" * 6)


def test_work_that_was_not_done_is_given_back() -> None:
    shares = FairShares()
    serve(shares, "a", 5 * WORK)
    shares.settled("a", -5 * WORK, 1.0)
    join(shares, "a", WORK, WORK)
    join(shares, "b", WORK, WORK)
    assert turns(shares, a=[WORK, WORK], b=[WORK, WORK]) == "abab"


def test_what_is_before_a_request_is_its_own_and_what_others_are_served_meanwhile() -> None:
    shares = FairShares()
    join(shares, "greedy", *[WORK] * 100)
    assert shares.work_before("greedy", 0) == 100 * WORK
    assert shares.work_before("modest", 0) == 0
    join(shares, "modest", WORK, WORK)
    assert shares.work_before("modest", 0) == 4 * WORK
    assert shares.work_before("modest", 1) == 0, "its own of a lower priority come later"
    assert shares.work_before("greedy", 0) == 102 * WORK


@pytest.mark.parametrize(("credit", "first"), [(0, "mmgmgm"), (2 * WORK, "mmmmgm")])
def test_a_burst_of_who_left_its_share_to_others_goes_first(credit: int, first: str) -> None:
    shares = FairShares()
    shares.credit_tokens = credit
    serve(shares, "m", WORK)
    shares.settled("m", 0, 1.0)
    join(shares, "g", *[WORK] * 50)
    for _ in range(40):
        shares.served("g", 0, WORK)
    join(shares, "m", *[WORK] * 5)
    assert turns(shares, m=[WORK] * 5, g=[WORK] * 10)[:6] == first


@pytest.mark.parametrize("most", [0, 3])
def test_tenants_without_requests_are_forgotten_when_they_are_old_or_too_many(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(fair_shares, "MAX_IDLE_TENANTS", most)
    shares = FairShares()
    for number in range(10):
        serve(shares, f"t{number}", WORK)
    for number in range(10):
        shares.settled(f"t{number}", WORK, 1.0)
        assert len(shares) <= max(10 - number - 1 + most, 0)
    join(shares, "last", WORK)
    shares.left("last", 0, WORK, 2.0 + MEMORY_S)
    assert len(shares) == min(most, 1) and shares.num_waiting_tenants == 0

"""A cluster in virtual time that is asked for more than it can do, by one tenant or by several."""

from __future__ import annotations

import pytest

from tests.support.admission.virtual_load import CAPACITY_PER_S, Ask, VirtualLoad

BOUND_S = 2.0
SECONDS = 20.0
OTHERS = ("t0", "t1", "t2")
SHARE = 0.2


def first_tokens(asks: list[Ask]) -> list[float]:
    return sorted(ask.first_token_s for ask in asks if ask.first_token_s is not None)


def goodput(factor: float, **settings: float) -> float:
    """Requests per second with a first token in time."""
    load = VirtualLoad({"": factor * CAPACITY_PER_S}, SECONDS, **settings)
    asks = load.run()
    assert load.core.num_unfinished == 0 or "max_ttft" not in settings
    return sum(seconds <= BOUND_S for seconds in first_tokens(asks)) / SECONDS


@pytest.mark.parametrize("factor", [2.0, 3.0, 10.0])
def test_goodput_is_that_of_the_capacity_however_much_is_asked_for(factor: float) -> None:
    assert goodput(factor, max_ttft=BOUND_S) >= 0.9 * goodput(1.0, max_ttft=BOUND_S)


def test_without_the_bound_most_answers_of_an_overload_come_too_late() -> None:
    assert goodput(3.0) < 0.5 * goodput(1.0)


def test_a_greedy_tenant_slows_nobody_else_and_is_refused_itself() -> None:
    p99: dict[int, float] = {}
    for factor in (1, 10):
        rates = {tenant: SHARE * CAPACITY_PER_S for tenant in OTHERS}
        rates["greedy"] = factor * SHARE * CAPACITY_PER_S
        asks = VirtualLoad(rates, 2 * SECONDS, max_ttft=BOUND_S).run()
        others = [ask for ask in asks if ask.tenant != "greedy"]
        assert all(ask.retry_after_s is None for ask in others)
        seconds = first_tokens(others)
        assert len(seconds) == len(others) > 500
        p99[factor] = seconds[int(0.99 * len(seconds))]
        refused = [ask for ask in asks if ask.retry_after_s is not None]
        assert bool(refused) == (factor > 1)
    assert p99[10] <= 1.25 * p99[1]


def test_nobody_is_refused_any_more_soon_after_an_overload() -> None:
    rates = {"": 3.0 * CAPACITY_PER_S}
    load = VirtualLoad(rates, SECONDS / 3, max_ttft=BOUND_S)
    asks = load.run()
    told = [ask.at + ask.retry_after_s for ask in asks if ask.retry_after_s is not None]
    assert told and load.core.num_unfinished == 0
    assert max(told) <= asks[-1].at + 3.0, "who comes back when told finds a place"
    assert load.core.statistics.totals.lifetime.refused_requests == len(told)

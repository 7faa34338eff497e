"""When a coordinator that was told to stop closes its port."""

from __future__ import annotations

import pytest

from coordinator.leaving.farewell import TOLD_ENOUGH, Farewell


def asked_regularly(every_s: float, until: float, timeout_s: float = 60.0) -> Farewell:
    farewell = Farewell(timeout_s)
    for n in range(int(until / every_s)):
        farewell.asked("proxy", n * every_s)
    return farewell


def test_with_nobody_who_looks_and_nothing_that_runs_it_ends_at_once() -> None:
    farewell = Farewell(10.0)
    assert not farewell.is_over(0, 1.0), "nobody told it to stop"
    farewell.begin(1.0)
    assert farewell.is_over(0, 1.0)


def test_what_runs_is_waited_for_within_the_limit() -> None:
    farewell = Farewell(10.0)
    farewell.begin(1.0)
    assert not farewell.is_over(1, 10.9)
    assert farewell.is_over(0, 2.0)
    assert farewell.is_over(1, 11.0)


@pytest.mark.parametrize("every_s", [0.1, 1.0, 2.0, 5.0])
def test_a_proxy_hears_it_often_enough_to_believe_it(every_s: float) -> None:
    farewell = asked_regularly(every_s, 30.0)
    farewell.begin(30.0)
    now, told = 30.0, 0
    while not farewell.is_over(0, now):
        assert now < 60.0
        farewell.asked("proxy", now)
        told += 1
        now += every_s
    assert told >= TOLD_ENOUGH
    assert now <= 30.0 + TOLD_ENOUGH * every_s + 1.0


def test_who_has_stopped_looking_is_not_waited_for() -> None:
    farewell = asked_regularly(0.05, 2.0)  # a script that waited for the start
    farewell.begin(10.0)
    assert farewell.is_over(0, 10.0)


def test_who_stops_looking_while_it_is_told_is_not_waited_for_long() -> None:
    farewell = asked_regularly(1.0, 30.0)
    farewell.begin(30.0)
    assert not farewell.is_over(0, 30.5)
    assert farewell.is_over(0, 33.0)


def test_one_question_is_no_habit_and_strangers_are_bounded() -> None:
    farewell = Farewell(10.0)
    for n in range(10_000):
        farewell.asked(f"person {n}", 0.0)
    farewell.begin(0.0)
    assert farewell.is_over(0, 0.0)
    assert len(farewell._watchers) < 100

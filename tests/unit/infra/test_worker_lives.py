"""When a worker that ended starts again, and what its parent's status is."""

from __future__ import annotations

import signal
from itertools import pairwise

import pytest

from infra.worker_lives import (
    CALM_STATUSES,
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    STEADY_AFTER_S,
    Restarts,
    worst_status,
)


def test_each_wait_is_twice_the_last_one_up_to_the_longest() -> None:
    restarts, now, waits = Restarts[int](), 0.0, []
    for _ in range(12):
        restarts.started(0, now)
        waits.append(restarts.ended(0, now))
        now += waits[-1]
    assert waits[0] == FIRST_WAIT_S and waits[-1] == LONGEST_WAIT_S
    for last, wait in pairwise(waits):
        assert wait == min(2 * last, LONGEST_WAIT_S)


def test_a_worker_that_lived_long_waits_as_for_the_first_time() -> None:
    restarts = Restarts[int]()
    for _ in range(5):
        restarts.started(0, 0.0)
        restarts.ended(0, 0.0)
    restarts.started(0, 100.0)
    assert restarts.ended(0, 100.0 + STEADY_AFTER_S) == FIRST_WAIT_S


def test_a_worker_is_due_after_its_wait_until_it_is_started() -> None:
    restarts = Restarts[int]()
    for worker in (0, 1):
        restarts.started(worker, 0.0)
    assert restarts.wake_in_s(1.0) is None
    wait_s = restarts.ended(1, 1.0)
    assert restarts.due(1.0) == [] and restarts.wake_in_s(1.0) == pytest.approx(wait_s)
    assert restarts.due(1.0 + wait_s) == [1] and restarts.wake_in_s(9.0) == 0.0
    restarts.started(1, 9.0)
    assert restarts.due(9.0) == [] and restarts.wake_in_s(9.0) is None


def test_the_status_of_the_parent_is_the_worst_of_its_workers() -> None:
    assert worst_status(CALM_STATUSES) == 0
    assert worst_status([0, 1, 3, -signal.SIGTERM]) == 3
    assert worst_status([1, -signal.SIGKILL]) == 128 + signal.SIGKILL

"""How long a node is thought to be busy."""

from __future__ import annotations

from pytest import approx

from coordinator.routing.node_queue import SETTLING_S
from tests.support.coordinator.backlogs import NamedBacklog


def test_what_was_sent_is_computed_in_order_as_time_passes() -> None:
    backlog = NamedBacklog()
    backlog.send("a", 2.0, 10.0)
    backlog.send("b", 3.0, 10.0)
    assert backlog.seconds(10.0) == 5.0
    assert backlog.seconds(11.5) == 3.5
    assert backlog.seconds(14.0) == 3.0, "b waits for a, which takes longer than was thought"
    backlog.compute("a", 14.0)
    assert backlog.seconds(14.0) == 3.0
    assert backlog.seconds(15.0) == 2.0
    backlog.compute("b", 15.0)
    assert backlog.seconds(15.0) == 0.0


def test_an_early_end_frees_the_rest() -> None:
    backlog = NamedBacklog()
    backlog.send("a", 2.0, 0.0)
    backlog.send("b", 3.0, 0.0)
    backlog.compute("a", 0.1)
    assert backlog.seconds(0.1) == 3.0
    backlog.compute("a", 0.2)
    assert backlog.seconds(0.2) == approx(2.9)


def test_a_late_end_is_still_there_as_long_as_the_node_says_so() -> None:
    backlog = NamedBacklog()
    backlog.send("a", 2.0, 0.0)
    assert backlog.seconds(5.0) == 0.0, "nothing else is known"
    backlog.heard(1.5, 5.0)
    assert backlog.seconds(5.0) == 1.5
    assert backlog.seconds(6.0) == 0.5
    backlog.compute("a", 6.0)
    assert backlog.seconds(6.0) == 0.0


def test_a_later_one_that_is_given_up_does_not_restart_the_first() -> None:
    backlog = NamedBacklog()
    backlog.send("a", 10.0, 0.0)
    backlog.send("b", 1.0, 0.0)
    backlog.compute("b", 9.0)
    assert backlog.seconds(9.0) == 1.0


def test_what_others_sent_counts_and_runs_out() -> None:
    backlog = NamedBacklog()
    backlog.heard(4.0, 10.0)
    assert [backlog.seconds(now) for now in (10.0, 12.0, 14.0, 20.0)] == [4.0, 2.0, 0.0, 0.0]
    backlog.send("a", 1.0, 12.0)
    assert backlog.seconds(12.0) == 3.0


def test_a_heartbeat_does_not_count_ours_twice() -> None:
    backlog = NamedBacklog()
    backlog.send("a", 2.0, 0.0)
    backlog.heard(2.0, SETTLING_S)
    assert backlog.seconds(SETTLING_S) <= 2.0
    backlog.heard(5.0, 2 * SETTLING_S)
    assert backlog.seconds(2 * SETTLING_S) == approx(5.0)


def test_what_was_just_sent_is_not_in_the_heartbeat_yet() -> None:
    backlog = NamedBacklog()
    backlog.send("a", 2.0, 0.0)
    backlog.heard(3.0, SETTLING_S / 2)
    assert backlog.seconds(SETTLING_S / 2) == approx(5.0, abs=SETTLING_S)


def test_work_ever_sent_is_remembered() -> None:
    backlog = NamedBacklog()
    backlog.send("a", 2.0, 0.0)
    backlog.compute("a", 0.0)
    backlog.send("b", 1.0, 0.0)
    assert backlog.total_s == 3.0

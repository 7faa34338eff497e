"""The event log: each change is noted once, with what it was, and the log stays small."""

from __future__ import annotations

import pytest

from coordinator.core.core import CoordinatorCore
from coordinator.core.pause import Pause
from coordinator.events.changes import ClusterChanges
from coordinator.events.event_log import MAX_EVENTS, EventLog
from protocol.ids import Node
from protocol.messages import Goodbye
from tests.support.coordinator.cores import core_of, hear
from tests.support.coordinator.nodes import LEASE_S


def told(changes: ClusterChanges) -> list[tuple[str, str]]:
    """Kind and node of each event, the oldest first."""
    return [(event.kind, event.node) for event in reversed(list(changes.log.newest_first()))]


def core_that_forgot(*names: str) -> CoordinatorCore:
    """A core with live nodes whose joining is checked and out of the way."""
    core = core_of(*names)
    assert told(core.changes) == [("joined", name) for name in names]
    core.changes.log = EventLog()
    return core


def test_a_node_joins_once_however_often_it_is_heard() -> None:
    core = core_of("p0", "d0")
    for now in (1.0, 2.0):
        hear(core, "p0", now)
    assert told(core.changes) == [("joined", "p0"), ("joined", "d0")]
    (last, first) = core.changes.log.newest_first()
    assert (first.role, last.role) == ("prefill", "decode") and (first.number, last.number) == (
        1,
        2,
    )


@pytest.mark.parametrize(("is_planned", "kind"), [(True, "left"), (False, "died")])
def test_a_goodbye_says_why_a_node_is_gone(is_planned: bool, kind: str) -> None:
    core = core_that_forgot("p0", "d0")
    core.handle(Goodbye(Node("p0", 1), is_planned), 5.0)
    core.handle(Goodbye(Node("p0", 1), is_planned), 5.1)  # it is gone already
    (event,) = core.changes.log.newest_first()
    assert (event.kind, event.node, event.role, event.at) == (kind, "p0", "prefill", 5.0)
    assert "p0" in event.text


def test_a_lease_that_ends_and_a_newer_process_are_told_apart() -> None:
    core = core_that_forgot("p0", "d0")
    hear(core, "d0", 2.0, incarnation=2)
    core.tick(LEASE_S + 0.5)  # p0 was heard at 0
    hear(core, "p0", LEASE_S + 1.0)
    assert told(core.changes) == [
        ("replaced", "d0"),
        ("joined", "d0"),
        ("lease_lost", "p0"),
        ("joined", "p0"),
    ]


def test_drains_are_noted_when_they_begin_and_end() -> None:
    core = core_that_forgot("p0", "p1", "d0")
    core.set_draining({"p0", "p1"}, 1.0)
    core.set_draining({"p0", "p1"}, 1.1)
    core.set_draining({"p1"}, 2.0)
    assert told(core.changes) == [("drained", "p0"), ("drained", "p1"), ("undrained", "p0")]
    core.handle(Goodbye(Node("p1", 1), True), 3.0)
    core.set_draining(set(), 3.1)
    assert told(core.changes)[3:] == [("left", "p1")], "one that is gone gets no requests again"


def test_redis_and_reloads_are_noted_as_they_change() -> None:
    changes = ClusterChanges()
    changes.record_seen(False, 0, "", 0.0)
    assert told(changes) == [], "it has not answered yet"
    for now, (is_connected, num_reloads) in enumerate(
        [(True, 0), (True, 0), (True, 2), (False, 2), (False, 2), (True, 2), (True, 3)]
    ):
        changes.record_seen(is_connected, num_reloads, "p0", float(now))
    assert told(changes) == [
        ("redis_back", ""),
        ("index_reloaded", "p0"),
        ("redis_lost", ""),
        ("redis_back", ""),
        ("index_reloaded", "p0"),
    ]
    assert "one of 2" in list(changes.log.newest_first())[3].text


def test_a_pause_and_its_end_are_noted() -> None:
    core = core_that_forgot("d0")
    core.set_pause(Pause(1, "retract"), 1.0)
    core.set_pause(Pause(2, None), 2.0)
    assert told(core.changes) == [("paused", ""), ("continued", "")]


def test_the_log_keeps_the_newest_and_counts_all() -> None:
    log = EventLog()
    for number in range(MAX_EVENTS + 7):
        log.note("paused", str(number), float(number))
    numbers = [event.number for event in log.newest_first()]
    assert numbers == list(range(MAX_EVENTS + 7, 7, -1))

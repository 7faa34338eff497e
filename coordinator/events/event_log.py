"""`EventLog`: the last things that happened to the cluster, in order. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal

import msgspec

from protocol.ids import Role

MAX_EVENTS = 300

EventKind = Literal[
    "joined",
    "left",
    "died",
    "lease_lost",
    "replaced",
    "drained",
    "undrained",
    "index_reloaded",
    "redis_lost",
    "redis_back",
    "paused",
    "continued",
]
"""left: it was told to stop. died: its companion said so. lease_lost: nothing was heard of it.
replaced: a newer process has its name."""
NODE_ENDS: frozenset[EventKind] = frozenset(("left", "died", "lease_lost", "replaced"))
"""Kinds after which an incarnation of a node is over."""


class ClusterEvent(msgspec.Struct, frozen=True):
    """One thing that happened."""

    number: int
    """Counts up from 1, without gaps."""
    at: float
    """When, by the clock of the coordinator's core."""
    kind: EventKind
    node: str
    """The name of the node that it concerns; "" if it concerns none."""
    role: Role | None
    """What that node preferred to do; None if there is no node, or nobody knows."""
    text: str
    """A sentence for people."""


class EventLog:
    """Keeps the last `max_events` events."""

    def __init__(self, max_events: int = MAX_EVENTS) -> None:
        self._events: deque[ClusterEvent] = deque(maxlen=max_events)
        self._num_events = 0

    def note(
        self, kind: EventKind, text: str, now: float, node: str = "", role: Role | None = None
    ) -> None:
        """Adds an event that happens now."""
        self._num_events += 1
        self._events.append(ClusterEvent(self._num_events, now, kind, node, role, text))

    def newest_first(self) -> Iterator[ClusterEvent]:
        """Returns the events that are kept, the newest first."""
        return reversed(self._events)

"""`ClusterChanges`: makes events of what the coordinator sees change. Pure.

Most of it is told as a state, over and over; an event is noted when that differs from what was told
before.
"""

from __future__ import annotations

from collections.abc import Collection

from coordinator.events.event_log import EventKind, EventLog
from protocol.ids import Node, Role

WHY_GONE: dict[EventKind, str] = {
    "left": "was told to stop, and has left",
    "died": "has died, says its companion",
    "lease_lost": "is lost: its lease ended without a heartbeat",
    "replaced": "is replaced by a newer process of this name",
}


class ClusterChanges:
    """Knows the last state of everything that has events, and notes changes in `log`."""

    def __init__(self) -> None:
        self.log = EventLog()
        self._roles: dict[Node, Role] = {}
        """Of the live nodes."""
        self._draining: frozenset[str] = frozenset()
        self._is_connected: bool | None = None
        """What was told of Redis last; None: it has not answered yet."""
        self._num_reloads = 0

    def node_heard(self, node: Node, role: Role, now: float) -> None:
        """Notes that a node joins, if it is not known yet."""
        if node not in self._roles:
            text = f"{role} node {node.name} joins"
            self.log.note("joined", text, now, node.name, role)
        self._roles[node] = role

    def node_gone(self, node: Node, how: EventKind, now: float) -> None:
        """Notes that an incarnation of a node is over, if it was known."""
        role = self._roles.pop(node, None)
        if role is not None:
            text = f"{role} node {node.name} {WHY_GONE[how]}"
            self.log.note(how, text, now, node.name, role)

    def drains(self, names: Collection[str], now: float) -> None:
        """Notes which nodes begin to drain, and which live ones get requests again."""
        was, self._draining = self._draining, frozenset(names)
        roles = {node.name: role for node, role in self._roles.items()}
        for name in sorted(self._draining - was):
            text = f"{name} drains: it gets no new requests"
            self.log.note("drained", text, now, name, roles.get(name))
        for name in sorted((was - self._draining) & roles.keys()):
            self.log.note("undrained", f"{name} gets requests again", now, name, roles[name])

    def record_seen(self, is_connected: bool, num_reloads: int, last: str, now: float) -> None:
        """Notes that Redis was lost or is back, and that records of nodes were read again as a
        whole: `num_reloads` so far, that of `last` as the last one."""
        if is_connected != (self._is_connected or False):
            first = self._is_connected is None
            self._is_connected = is_connected
            if not is_connected:
                text = "Redis is lost: routing goes on with the nodes and pages known so far"
                self.log.note("redis_lost", text, now)
            else:
                text = f"Redis {'answers' if first else 'is back'}: page ownership is followed"
                self.log.note("redis_back", text, now)
        num_new = num_reloads - self._num_reloads
        self._num_reloads = num_reloads
        if num_new > 0:
            others = f", as one of {num_new}" if num_new > 1 else ""
            text = f"the record of {last} was read again from Redis as a whole{others}"
            self.log.note("index_reloaded", text, now, last)

    def paused(self, mode: str, now: float) -> None:
        """Notes that generation pauses."""
        self.log.note("paused", f"generation is paused ({mode})", now)

    def continued(self, now: float) -> None:
        """Notes that generation goes on."""
        self.log.note("continued", "generation goes on", now)

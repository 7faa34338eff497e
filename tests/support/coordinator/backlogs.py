"""Backlogs whose bookings have names."""

from __future__ import annotations

from coordinator.routing.node_queue import Booking, NodeQueueEstimate


class NamedBacklog(NodeQueueEstimate):
    """A backlog whose bookings have names."""

    def __init__(self) -> None:
        super().__init__()
        self._bookings: dict[str, Booking] = {}

    def send(self, name: str, work_s: float, now: float) -> None:
        booking = self._bookings[name] = Booking(work_s, 0, now)
        self.sent(booking)

    def compute(self, name: str, now: float) -> None:
        if name in self._bookings:
            self.computed(self._bookings[name], now)

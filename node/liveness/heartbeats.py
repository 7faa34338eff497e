"""`Heartbeats`: what a node's main loop notes of itself, for its companion to tell coordinators."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from node.liveness.board import Board
from node.liveness.condition import Told
from protocol.messages import Load, NodeInfo

HEARTBEATS_PER_LEASE = 12
NEWS_INTERVAL_S = 0.05
"""Work that comes or goes is told at once, but no more often than this: several coordinators know
of each other's requests by heartbeats only."""
NOTE_INTERVAL_S = 0.02
"""A busy loop does not write its load down more often than this, unless there is news."""


class Heartbeats:
    """Writes on a board that the main loop came round, and how much there is to do."""

    def __init__(
        self,
        board: Board,
        info: NodeInfo,
        coordinators: Callable[[], Sequence[str]],
        tell_news: Callable[[], None],
    ) -> None:
        """`tell_news` wakes the companion, which reads the board several times a lease anyway."""
        self._board = board
        self._info = info
        self._coordinators = coordinators
        self._tell_news = tell_news
        self._load: Load | None = None
        self._noted_at = 0.0
        self._is_draining = False

    def tell_draining(self) -> None:
        """Has the companion hear, from the next `update` on, that the node drains."""
        self._is_draining = True

    def update(self, load: Load) -> None:
        """Takes the load after a turn of the main loop. Before the first call there is no
        heartbeat."""
        now = time.monotonic()
        is_news = self._load is None or work_changed(self._load, load)
        is_idle = load.num_running == load.num_waiting == 0
        self._load = load
        if is_news or is_idle or now >= self._noted_at + NOTE_INTERVAL_S:
            self._noted_at = now
            told = Told(self._info, load, tuple(self._coordinators()), self._is_draining)
            self._board.write(msgspec.msgpack.encode(told))
        self._board.stamp(int(now * 1e9))
        if is_news:
            self._tell_news()


def work_changed(before: Load, after: Load) -> bool:
    """Returns whether requests came or went. Progress within a request does not count, as everybody
    expects it."""
    return (
        before.num_running != after.num_running
        or before.num_waiting != after.num_waiting
        or before.queued_tokens < after.queued_tokens
        or before.counters.requests != after.counters.requests
    )

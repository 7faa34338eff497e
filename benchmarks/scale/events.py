"""`Events`: what happens when, on a virtual clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class Events:
    """Calls functions in the order of their times; among equal times, in the order of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = itertools.count()

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Has `call(*arguments)` called `delay_s` from now."""
        heapq.heappush(self._queue, (self.now + delay_s, next(self._serial), call, arguments))

    def run(self, until: float) -> None:
        """Calls everything that is due by `until`, which is then the time."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(queue)
            call(*arguments)
        self.now = until

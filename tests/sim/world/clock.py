"""`VirtualClock`: what happens when, without waiting. Pure."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class VirtualClock:
    """Calls functions in the order of their times; among equal times, in the order of asking."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = itertools.count()

    def __call__(self) -> float:
        return self.now

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Calls `call(*arguments)` at `when`, or now if that is over."""
        heapq.heappush(self._queue, (max(when, self.now), next(self._serial), call, arguments))

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._queue, (self.now + delay_s, next(self._serial), call, arguments))

    def run(self, until: float, is_over: Callable[[], bool]) -> None:
        """Runs until nothing is left, `is_over()`, or `until`, which is then the time."""
        queue = self._queue
        while queue and queue[0][0] <= until and not is_over():
            self.now, _, call, arguments = heapq.heappop(queue)
            call(*arguments)
        if not is_over():
            self.now = max(self.now, until)

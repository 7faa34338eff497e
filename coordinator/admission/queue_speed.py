"""`QueueSpeed`: how much of the waiting work the cluster begins per second, as measured. Pure.

What bounds it does not matter: prompts that keep nodes busy, places of answers, or pages. Only the
time counts in which something waited, from one departure to the next. Older departures count less,
so that the measurement follows nodes that come, go, or slow down.

    departure ──── gap ──── departure ──── gap ──── departure      the queue is empty    departure
       │  something waits      │  something waits      │            (not measured)           │
"""

from __future__ import annotations

import math

MEMORY_S = 2.0
"""After so much measured time, what was measured before counts 1/e of what it did."""
LEAST_S = 0.1
"""Less measured time than this counts as so much: two departures of one moment are no speed."""


class QueueSpeed:
    """Measures the tokens of work that leave a queue per second, while something waits."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._departures = 0.0
        self._since: float | None = None
        """When work left the queue last and other work stayed; None while nothing waits."""

    def departed(self, num_tokens: int, something_waits: bool, now: float) -> None:
        """Notes that work has left the queue to be done. `something_waits`: more is there."""
        if self._since is not None:
            gap_s = now - self._since
            kept = math.exp(-gap_s / MEMORY_S)
            self._tokens = self._tokens * kept + num_tokens
            self._seconds = self._seconds * kept + gap_s
            self._departures = self._departures * kept + 1
        self._since = now if something_waits else None

    def interrupted(self) -> None:
        """Notes that nothing waits any more, or that what waits is held back on purpose: the time
        until the next departure says nothing."""
        self._since = None

    def tokens_per_s(self, presumed: float, now: float) -> float:
        """Returns the speed; `presumed` until something was measured.

        A gap that is longer than gaps are shows in the speed before it has ended.
        """
        if not self._seconds:
            return presumed
        overdue_s = 0.0
        if self._since is not None:
            overdue_s = max(0.0, now - self._since - self._seconds / self._departures)
        return self._tokens / max(LEAST_S, self._seconds + overdue_s)

"""`Farewell`: when a coordinator that was told to stop may close its port. Pure.

Whoever looks at GET /ready, a proxy or a kubelet, sends it requests until it has heard some 503s. A
port that closes before that refuses them. So the coordinator serves on until all who look have
heard enough, and until what it serves has ended; for both it has one limit of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ASKS_TO_COUNT = 3
"""Who has asked so often looks regularly."""
TOLD_ENOUGH = 3
"""So many 503s in a row take a server out in HAProxy and in Kubernetes, by default."""
LINGER_S = 0.5
"""For requests that were on their way when the last 503 was told."""
MAX_WATCHERS = 64


@dataclass
class _Watcher:
    """Somebody who asks whether the coordinator is ready."""

    asked_at: float
    longest_gap_s: float = 0.0
    """The longest time between two of its questions, lately."""
    num_asked: int = 1
    num_told: int = 0
    """How often it was told that the coordinator stops."""
    knows_since: float = math.inf
    """When it had heard that often enough."""

    def is_waited_for(self, now: float) -> bool:
        """Returns True if it looks regularly and has not heard often enough that it is over."""
        silent_s = now - self.asked_at
        if self.num_asked < ASKS_TO_COUNT or silent_s > 2 * self.longest_gap_s + 1.0:
            return False
        return now < self.knows_since + LINGER_S


class Farewell:
    """Knows who asks whether the coordinator is ready, and whether they know that it stops."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s` is the most time between the wish to stop and the end."""
        self._timeout_s = timeout_s
        self._watchers: dict[str, _Watcher] = {}
        self._began_at: float | None = None

    @property
    def has_begun(self) -> bool:
        """True once the coordinator was told to stop."""
        return self._began_at is not None

    def asked(self, who: str, now: float) -> None:
        """Notes that `who` asks now whether the coordinator is ready, and is told."""
        watcher = self._watchers.pop(who, None)
        if watcher is None:
            watcher = _Watcher(now)
        else:
            gap_s = now - watcher.asked_at
            # Long gaps are forgotten by and by, as who has found it ready may ask less often.
            watcher.longest_gap_s = max(gap_s, watcher.longest_gap_s / 2)
            watcher.asked_at = now
            watcher.num_asked += 1
        watcher.num_told += self.has_begun
        if watcher.num_told == TOLD_ENOUGH:
            watcher.knows_since = now
        self._watchers[who] = watcher
        while len(self._watchers) > MAX_WATCHERS:
            del self._watchers[next(iter(self._watchers))]  # who has not asked for longest

    def begin(self, now: float) -> None:
        """Notes that the coordinator was told to stop. A second time changes nothing."""
        if self._began_at is None:
            self._began_at = now

    def is_over(self, num_unfinished: int, now: float) -> bool:
        """Returns True once the port may close: nothing is unfinished and nobody has to be told any
        more, or the time is up. False before `begin`."""
        if self._began_at is None:
            return False
        if now >= self._began_at + self._timeout_s:
            return True
        is_waited_for = any(one.is_waited_for(now) for one in self._watchers.values())
        return num_unfinished == 0 and not is_waited_for

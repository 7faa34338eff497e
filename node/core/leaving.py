"""`Leaving`: when a node that was told to stop may end. Pure.

    begin ──► the node is marked as draining ──► nothing is left for SETTLE_S ──► it ends
                     │                                                            ▲
                     ├──► Redis takes no mark: requests would come for ever ──────┤
                     └──► --drain-timeout-s is over ──────────────────────────────┘

What a node has not finished by then goes on at another node. So leaving in order is a courtesy to
clients, whose streams do not pause, and nothing here may hold up a stop for longer.
"""

from __future__ import annotations

DRAIN_TIMEOUT_S = 25.0
SETTLE_S = 2.0
"""How long a marked node must have had nothing to do: coordinators look for marks twice a second,
and what they sent before has come by then."""


class Leaving:
    """Knows whether a node was told to stop, and whether it may end. `now` is monotonic seconds."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s` is the most time between the wish to stop and the end."""
        self._timeout_s = timeout_s
        self._ends_at: float | None = None
        self._is_marked = False
        self._cannot_be_marked = False
        self._idle_since: float | None = None

    @property
    def has_begun(self) -> bool:
        """True once the node was told to stop."""
        return self._ends_at is not None

    def begin(self, now: float) -> None:
        """Notes that the node was told to stop. A second time changes nothing."""
        if self._ends_at is None:
            self._ends_at = now + self._timeout_s

    def marked(self, is_written: bool) -> None:
        """Notes whether Redis has taken the mark that keeps new requests away."""
        self._is_marked = is_written
        self._cannot_be_marked = not is_written

    def is_over(self, is_idle: bool, now: float) -> bool:
        """Returns True once the node may end; False before `begin`. `is_idle` says whether the node
        has nothing to do now; it is asked after every turn."""
        if self._ends_at is None:
            return False
        if now >= self._ends_at or self._cannot_be_marked:
            return True
        if not (is_idle and self._is_marked):
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        return now >= self._idle_since + SETTLE_S

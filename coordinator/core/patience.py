"""`Patience`: how often and how long a request is tried before it ends without an answer. Pure.

A node may fail a request, or be too busy for it, or there may be none at all. The first two have
limits of their own; for a node to appear a request waits up to its deadline.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.answers.answer import AnswerError, ErrorKind

MAX_FAILURES = 4
"""Nodes that may fail one request, with no token between, before it fails."""
RETRY_WITHIN_S = 10.0
"""So long a request is sent to nodes that are all too busy before it ends."""
BUSY_RETRY_S = 0.5
"""When every node's queue is full, each is asked again after so long."""


@dataclass(eq=False)
class Patience:
    """What went wrong with one request so far, and how long that goes on. A method that returns an
    error says that the request is to end with it."""

    avoid: set[str] = field(default_factory=set)
    """Names of nodes that failed it or were too busy."""
    retry_at: float = 0.0
    """When it may be queued again."""
    _num_failures: int = 0
    _last_failure: str = ""
    _kind: ErrorKind = "unavailable"
    """How the request ends if no further attempt succeeds: the kind of its last failure."""
    sent_at: float = 0.0
    """When the current attempt was sent."""
    _why_no_node: str = ""
    """Why no node could take it, when it was looked at last; "" if one could."""
    _give_up_at: float | None = None
    """When the request ends unless a node takes it before. Set by a failure, or by the first of
    several busy replies in a row; cleared by a token."""

    def sent(self, now: float) -> None:
        """Notes that an attempt is sent to a node."""
        self.sent_at = now
        if now - self.retry_at > RETRY_WITHIN_S:
            self._give_up_at = None  # it waited here for its turn, not for a busy node

    def answered(self) -> None:
        """Notes that a token has come."""
        self._give_up_at, self._num_failures = None, 0

    def held(self) -> None:
        """Notes that the request is taken back from its node, or waits on, through no fault of
        any."""
        self._give_up_at = None

    def failed(
        self, name: str, reason: str, num_attempts: int, now: float, retry_in_s: float = 0.0
    ) -> AnswerError | None:
        """Notes that the node `name` could not do its part in the attempt of this number."""
        self._num_failures += 1
        # A request that kills nodes must not go through all of them.
        if self._num_failures == MAX_FAILURES:
            message = f"gave up after {num_attempts} attempts; the last one: {reason}"
            return AnswerError("unavailable", message)
        self._kind = "unavailable"
        self.retry_at, self._give_up_at = now + retry_in_s, now + RETRY_WITHIN_S
        self._went_wrong(name, reason)
        return None

    def busy(self, name: str, reason: str, now: float) -> AnswerError | None:
        """Notes that the queue of the node `name` is full."""
        self._kind = "too_busy"
        self.retry_at = now + self.pause_before(name)
        was_waiting_for_this_node = now - self.sent_at > RETRY_WITHIN_S
        if self._give_up_at is None or was_waiting_for_this_node:
            self._give_up_at = now + RETRY_WITHIN_S
        elif now >= self._give_up_at:
            return AnswerError("too_busy", reason)
        self._went_wrong(name, reason)
        return None

    def no_node(self, reason: str) -> None:
        """Notes that no node could take the request now. It waits for one up to its deadline."""
        self._why_no_node = reason

    def too_late(self, deadline_s: float) -> AnswerError:
        """Returns the error of a request that has not ended within its deadline."""
        if not self._why_no_node:
            return AnswerError("timed_out", f"the request did not end within {deadline_s:g} s")
        failure = f"{self._last_failure}, and " if self._last_failure else ""
        return AnswerError(self._kind, f"{failure}{self._why_no_node}, for up to {deadline_s:g} s")

    def some_node(self, now: float) -> None:
        """Notes that there is a node which could take the request."""
        self._why_no_node = ""
        waits_for_its_turn = now - self.retry_at > RETRY_WITHIN_S
        if self._kind == "unavailable" or waits_for_its_turn:
            self._give_up_at, self._kind = None, "unavailable"

    def pause_before(self, name: str) -> float:
        """Returns how many seconds pass before the next attempt when the node `name` has not taken
        this one: none if others were not asked yet."""
        return BUSY_RETRY_S if name in self.avoid else 0.0

    def _went_wrong(self, name: str, reason: str) -> None:
        self.avoid.add(name)
        self._last_failure = reason

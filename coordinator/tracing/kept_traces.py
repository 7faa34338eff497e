"""Which traces are kept. Pure.

The coordinator knows the whole trace when it ends, so it decides then: those that went wrong or
were slow are always kept, of the others a share.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.answers.answer import Answer

MOST = float(1 << 64)


@dataclass(frozen=True)
class KeptTraces:
    """The rule by which traces are kept."""

    share: float
    """The share of all traces, from 0 to 1, that is kept whatever they are."""
    slow_s: float
    """A first token that took longer is slow."""

    def keeps(self, answer: Answer) -> bool:
        """Says whether the trace of a request that has ended is kept. Of those that are neither
        slow nor failed, all of a client's trace are kept, or none is."""
        timeline, context = answer.timeline, answer.request.arrival.trace
        if answer.error is not None and answer.error.kind != "client_left":
            return True
        if answer.num_attempts > 1:
            return True
        first_at = timeline.first_token_at
        if first_at is not None and first_at - timeline.received_at > self.slow_s:
            return True
        if context is not None:
            return context.is_sampled
        return int(answer.request_id[-16:], 16) / MOST < self.share

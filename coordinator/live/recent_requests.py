"""`RecentRequests`: the times of the requests that ended within the last minute. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.metrics.stages import stages_of
from coordinator.timelines.ended_requests import ReportableRequest

WINDOW_S = 60.0


@dataclass(frozen=True)
class MeasuredRequest:
    """The parts of one request's way to its second token, in seconds."""

    first_token_s: float | None
    """From its arrival; None if no token came."""
    intake_s: float
    """Reading the body, tokenizing it, compiling its grammar."""
    queue_s: float
    prefill_s: float
    exposed_s: float
    first_step_s: float
    is_resumed: bool
    """An answer that had begun went on at another node."""

    @property
    def stages_s(self) -> tuple[float, ...]:
        """The parts in the order of STAGES."""
        return self.intake_s, self.queue_s, self.prefill_s, self.exposed_s, self.first_step_s


STAGES = ("intake", "wait", "prefill", "transfer", "first step")


def measured(request: ReportableRequest, now: float) -> MeasuredRequest:
    """Returns the times of a request that has ended."""
    timeline, stages = request.timeline, stages_of(request.timeline, now)
    first_at = timeline.first_token_at
    lost = timeline.attempts[:-1]
    return MeasuredRequest(
        first_token_s=None if first_at is None else max(0.0, first_at - timeline.received_at),
        intake_s=timeline.submitted_at - timeline.received_at,
        queue_s=stages.queue_s,
        prefill_s=stages.prefill_s or 0.0,
        exposed_s=stages.exposed_s or 0.0,
        first_step_s=stages.first_step_s or 0.0,
        is_resumed=any(attempt.told for attempt in lost),
    )


class RecentRequests:
    """Measures each ended request once, however often it is asked for."""

    def __init__(self) -> None:
        self._measured: dict[str, MeasuredRequest] = {}

    def update(self, newest_first: Iterable[ReportableRequest], now: float) -> None:
        """Takes the requests that are kept, the one that ended last first, and forgets those that
        ended before the last WINDOW_S."""
        known, self._measured = self._measured, {}
        for request in newest_first:
            ended_at = request.timeline.ended_at
            if ended_at is None:
                continue  # all of it was answered by another coordinator
            if ended_at < now - WINDOW_S:
                break
            name = request.facts.request_id
            self._measured[name] = known.get(name) or measured(request, now)

    @property
    def by_first_token(self) -> list[MeasuredRequest]:
        """The requests that have a first token, the fastest first."""
        found = [one for one in self._measured.values() if one.first_token_s is not None]
        return sorted(found, key=lambda one: one.first_token_s or 0.0)

    @property
    def num_resumed(self) -> int:
        """How many of them went on at another node in the middle of their answer."""
        return sum(one.is_resumed for one in self._measured.values())

"""`EndedRequests`: the requests that ended lately, whatever their end. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from coordinator.timelines.spans import computing_ms, spans_of
from coordinator.timelines.timeline import Timeline
from protocol.timelines.request_reports import RequestFacts, RequestReport, TimelineSpan

MAX_ENDED = 1_000
KEPT_S = 600.0
"""For how long an ended request is kept, unless MAX_ENDED newer ones have ended."""


@dataclass(frozen=True)
class ReportableRequest:
    """A request of which something can be told: its facts, and the moments of its life."""

    facts: RequestFacts
    timeline: Timeline
    forecast_s: float | None = None
    """What the router predicted from its decision to the first token; None without a route."""
    runner_up: str = ""
    """What the router would have chosen else."""

    def report(self, coordinator: str, with_spans: bool, now: float) -> RequestReport:
        """Returns what is known of it now; `coordinator` is the address of the one that tells."""
        timeline = self.timeline
        spans = spans_of(timeline, now)
        origin = timeline.received_at
        first_at = (
            timeline.written_at if timeline.written_at is not None else timeline.first_token_at
        )
        first_token_ms = None if first_at is None else round((first_at - origin) * 1e3, 4)
        total_ms = _end_ms(spans)
        return RequestReport(
            **msgspec.structs.asdict(self.facts),
            coordinator=coordinator,
            arrived_s_ago=round(max(0.0, now - origin), 3),
            first_token_ms=first_token_ms,
            computing_ms=round(
                computing_ms(spans, total_ms if first_token_ms is None else first_token_ms), 4
            ),
            total_ms=total_ms,
            spans=spans if with_spans else [],
        )


class EndedRequests:
    """Keeps at most MAX_ENDED requests, each for at most KEPT_S after its end."""

    def __init__(self, max_ended: int = MAX_ENDED, kept_s: float = KEPT_S) -> None:
        self._max_ended = max_ended
        self._kept_s = kept_s
        self._ended: dict[str, tuple[float, ReportableRequest]] = {}
        """When each ended, and what it was, by request id; the oldest first."""

    def add(self, request: ReportableRequest, now: float) -> None:
        """Keeps a request that has ended."""
        self._forget_old(now)
        self._ended[request.facts.request_id] = (now, request)
        if len(self._ended) > self._max_ended:
            del self._ended[next(iter(self._ended))]

    def newest_first(self, now: float) -> Iterator[ReportableRequest]:
        """Returns those that are kept, the one that ended last first."""
        self._forget_old(now)
        return (request for _, request in reversed(self._ended.values()))

    def _forget_old(self, now: float) -> None:
        while self._ended:
            oldest = next(iter(self._ended))
            if now - self._ended[oldest][0] <= self._kept_s:
                return
            del self._ended[oldest]


def _end_ms(spans: list[TimelineSpan]) -> float:
    return round(spans[-1].start_ms + spans[-1].duration_ms, 4) if spans else 0.0

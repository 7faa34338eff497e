"""Makes named spans of the moments in a `Timeline`. Pure.

The spans follow one another without gaps and none is negative, whatever the nodes have told: the
time between two moments of the coordinator is shared out, and what no node accounts for is the
wire's.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.timelines.timeline import AttemptTimes, Timeline, ToldTimes
from protocol.timelines.node_spans import NodeSpan, NodeTimes
from protocol.timelines.request_reports import TimelineSpan

HERE = "coordinator"


def spans_of(timeline: Timeline, now: float) -> list[TimelineSpan]:
    """Returns the spans of a request from its arrival until it was answered, or until `now`."""
    drawn = _Spans(timeline.received_at)
    drawn.until("http_in", timeline.parsed_at, HERE)
    drawn.until("tokenize", timeline.submitted_at, HERE)
    for attempt in timeline.attempts:
        drawn.attempt = attempt.number
        _draw_attempt(drawn, timeline, attempt, now)
    drawn.attempt = 0
    if timeline.ended_at is not None:
        replied_at = now if timeline.replied_at is None else timeline.replied_at
        drawn.until("reply", replied_at, HERE)
    return drawn.spans


def computing_ms(spans: Sequence[TimelineSpan], until_ms: float) -> float:
    """Returns how much of the time before `until_ms` was computing the prompt."""
    return sum(
        span.duration_ms for span in spans if span.name == "compute" and span.start_ms < until_ms
    )


class _Spans:
    """The spans that are drawn so far. The next one begins where the last one ended."""

    def __init__(self, origin: float) -> None:
        self.spans: list[TimelineSpan] = []
        self.attempt = 0
        self.end = origin
        self._origin = origin

    def until(self, name: str, end: float, where: str, **details: int | float | str) -> None:
        """Adds a span up to `end`. Less time than can be told is left to the next span."""
        start_ms = _ms(self.end - self._origin)
        duration_ms = round(_ms(end - self._origin) - start_ms, 4)
        if duration_ms <= 0:
            return
        self.spans.append(TimelineSpan(name, start_ms, duration_ms, where, self.attempt, details))
        self.end = end


def _draw_attempt(drawn: _Spans, timeline: Timeline, attempt: AttemptTimes, now: float) -> None:
    # Some of many attempts are not kept.
    drawn.until("earlier_attempts", attempt.waits_from, HERE)
    end = now if attempt.ended_at is None else attempt.ended_at
    if attempt.routed_at is None:
        return drawn.until("queue", end, HERE)
    drawn.until("queue", attempt.routed_at, HERE)
    if attempt.sent_at is not None:
        drawn.until("route", min(attempt.sent_at, end), HERE)
    for position, told in enumerate(attempt.told):
        if position:
            # What was answered before the answer gave way.
            drawn.until("decode", told.at - _total_s(told.answering), attempt.decode_node)
            _draw_told(drawn, attempt, told, is_first=False)
        else:
            _draw_told(drawn, attempt, told, is_first=True)
            _draw_first_event(drawn, timeline, told)
    name = "decode" if attempt.told else "unanswered"
    why = {"ended_by": attempt.end} if attempt.end else {}
    drawn.until(name, end, attempt.decode_node, **why)


def _draw_first_event(drawn: _Spans, timeline: Timeline, told: ToldTimes) -> None:
    """The first event of the stream, if these were the very first tokens."""
    if told.at != timeline.first_token_at:
        return
    if timeline.formed_at is not None and timeline.written_at is not None:
        drawn.until("form_event", timeline.formed_at, HERE)
        drawn.until("write_event", timeline.written_at, HERE)


def _draw_told(drawn: _Spans, attempt: AttemptTimes, told: ToldTimes, is_first: bool) -> None:
    """Shares out the time until these tokens came: what their node tells, and the wire's."""
    own = told.answering or NodeTimes(())
    elapsed_s = max(0.0, told.at - drawn.end)
    # A node whose clock runs fast must not tell of more than there was.
    scale = min(1.0, elapsed_s / own.total_s) if own.total_s else 1.0
    if is_first:
        wire = f"{HERE} ↔ {attempt.decode_node}"
        drawn.until("wire", told.at - own.total_s * scale, wire, **_inbox(own))
    for span in own.spans:
        end = min(drawn.end + span.duration_s * scale, told.at)
        if span.name == "handover" and told.computing is not None:
            _draw_handover(drawn, attempt, told.computing, end)
        else:
            _draw_node_span(drawn, span, end, attempt.decode_node)


def _draw_handover(drawn: _Spans, attempt: AttemptTimes, computing: NodeTimes, end: float) -> None:
    """Shares out the time for which another node had the prompt, and the way there and back."""
    handover_s = max(0.0, end - drawn.end)
    scale = min(1.0, handover_s / computing.total_s) if computing.total_s else 1.0
    wire = f"{attempt.decode_node} ↔ {attempt.prefill_node}"
    drawn.until("wire", end - computing.total_s * scale, wire, **_inbox(computing))
    for span in computing.spans:
        span_end = min(drawn.end + span.duration_s * scale, end)
        _draw_node_span(drawn, span, span_end, attempt.prefill_node)


def _draw_node_span(drawn: _Spans, span: NodeSpan, end: float, where: str) -> None:
    tokens = {"tokens": span.num_tokens} if span.num_tokens else {}
    drawn.until(span.name, end, where, **tokens)


def _inbox(times: NodeTimes) -> dict[str, float]:
    return {"inbox_up_to_ms": _ms(times.inbox_s)} if times.inbox_s else {}


def _total_s(times: NodeTimes | None) -> float:
    return times.total_s if times is not None else 0.0


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)

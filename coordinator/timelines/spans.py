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
NO_TIMES = NodeTimes(())


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
        if not position:
            _draw_first_told(drawn, attempt, told)
            _draw_first_event(drawn, timeline, told)
        elif told.computing is not None:
            _draw_joining(drawn, attempt, told)
        else:
            # What was answered before the answer gave way.
            answering = told.answering or NO_TIMES
            drawn.until("decode", told.at - answering.total_s, attempt.decode_node)
            _draw_own_spans(drawn, attempt, told, scale=1.0)
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


def _draw_first_told(drawn: _Spans, attempt: AttemptTimes, told: ToldTimes) -> None:
    """Shares out the time until the first tokens came: what nodes tell, and the wire's."""
    own, computing = told.answering or NO_TIMES, told.computing or NO_TIMES
    is_short_way = told.computing is not None and not _has_handover(own)
    total_s = own.total_s + (computing.total_s if is_short_way else 0.0)
    elapsed_s = max(0.0, told.at - drawn.end)
    # A node whose clock runs fast must not tell of more than there was.
    scale = min(1.0, elapsed_s / total_s) if total_s else 1.0
    ends = [HERE, attempt.decode_node, *([attempt.prefill_node] if is_short_way else [])]
    drawn.until("wire", told.at - total_s * scale, " ↔ ".join(ends), **_inbox(own))
    _draw_own_spans(drawn, attempt, told, scale)
    if is_short_way:
        for span in computing.spans:
            end = min(drawn.end + span.duration_s * scale, told.at)
            _draw_node_span(drawn, span, end, attempt.prefill_node)


def _draw_joining(drawn: _Spans, attempt: AttemptTimes, told: ToldTimes) -> None:
    """The node that answers has what the other node has computed. Its first token has come from
    there; it still waited for pages, and for a step to end."""
    spans = (told.answering or NO_TIMES).spans
    place = next((i for i, span in enumerate(spans) if span.name == "handover"), len(spans))
    behind = spans[place + 1 :]
    total_s = sum(span.duration_s for span in behind)
    drawn.until("joining", told.at - total_s, attempt.decode_node)
    for span in behind:
        end = min(drawn.end + span.duration_s, told.at)
        _draw_node_span(drawn, span, end, attempt.decode_node)


def _draw_own_spans(drawn: _Spans, attempt: AttemptTimes, told: ToldTimes, scale: float) -> None:
    for span in (told.answering or NO_TIMES).spans:
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


def _has_handover(times: NodeTimes) -> bool:
    return any(span.name == "handover" for span in times.spans)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)

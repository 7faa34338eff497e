"""Makes the spans of a trace of a request that has ended. Pure.

    {operation} {model}                       SERVER, with the conventions' gen_ai.* names
     ├ kvrelay.http_in, kvrelay.tokenize
     └ kvrelay.attempt                        one for each attempt
         ├ kvrelay.queue, kvrelay.route
         └ kvrelay.wire, .admission, .fetch, .step_wait, .compute, .transfer, .decode …

Nodes only tell durations, so no clocks are compared: all times are those of the coordinator's own
clock, as in the timeline of `/admin/requests/{rid}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby

from coordinator.answers.answer import Answer
from coordinator.timelines.spans import spans_of
from protocol.timelines.request_reports import TimelineSpan

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
"""The conventions' names of what endpoints do; all others generate content."""
PROVIDER = "kvrelay"

Value = str | int | float | bool | Sequence[str]


@dataclass(frozen=True)
class TraceSpan:
    """One span, with times in nanoseconds since the epoch."""

    name: str
    span_id: str
    parent_id: str
    """"" if there is none."""
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""
    """What went wrong in it."""


@dataclass(frozen=True)
class RequestTrace:
    """The spans of one request, the outermost first."""

    trace_id: str
    spans: tuple[TraceSpan, ...]
    state: str = ""
    """The client's tracestate."""


def trace_of(answer: Answer, model: str, now: float, epoch_ns: int) -> RequestTrace:
    """Returns the trace of a request that has ended. `now` is this moment on the coordinator's
    clock, in seconds, and `epoch_ns` is the same moment in nanoseconds since the epoch."""
    context, timeline = answer.request.arrival.trace, answer.timeline
    origin_ns = epoch_ns - round((now - timeline.received_at) * 1e9)
    spans = spans_of(timeline, now)
    root = TraceSpan(
        f"{_operation(answer)} {model}",
        _span_id(answer, 0),
        context.parent_id if context is not None else "",
        origin_ns,
        origin_ns + _end_ns(spans),
        dict(_attributes(answer, model)),
        answer.error.message if answer.error is not None else "",
    )
    inner = tuple(_inner_spans(answer, root.span_id, spans, origin_ns))
    trace_id = context.trace_id if context is not None else answer.request_id
    return RequestTrace(trace_id, (root, *inner), context.state if context is not None else "")


def _inner_spans(
    answer: Answer, root_id: str, spans: Sequence[TimelineSpan], origin_ns: int
) -> Iterator[TraceSpan]:
    number = 0
    for attempt, of_it in groupby(spans, key=lambda span: span.attempt):
        group, parent_id = list(of_it), root_id
        if attempt:
            number += 1
            parent_id = _span_id(answer, number)
            why = str(group[-1].details.get("ended_by", ""))
            begin, end = _place(group[0], origin_ns)[0], _place(group[-1], origin_ns)[1]
            details: dict[str, Value] = {"kvrelay.attempt": attempt}
            yield TraceSpan("kvrelay.attempt", parent_id, root_id, begin, end, details, why)
        for span in group:
            number += 1
            begin, end = _place(span, origin_ns)
            yield TraceSpan(
                f"kvrelay.{span.name}",
                _span_id(answer, number),
                parent_id,
                begin,
                end,
                {
                    "kvrelay.where": span.where,
                    **{f"kvrelay.{key}": value for key, value in span.details.items()},
                },
            )


def _attributes(answer: Answer, model: str) -> Iterator[tuple[str, Value]]:
    request, timeline = answer.request, answer.timeline
    yield "gen_ai.operation.name", _operation(answer)
    yield "gen_ai.provider.name", PROVIDER
    yield "gen_ai.request.model", model
    yield "gen_ai.request.max_tokens", request.max_new_tokens
    yield "gen_ai.request.temperature", request.sampling.temperature
    yield "gen_ai.request.top_p", request.sampling.top_p
    yield "gen_ai.usage.input_tokens", len(request.tokens)
    yield "gen_ai.usage.output_tokens", len(answer.output_ids)
    yield "gen_ai.usage.cache_read.input_tokens", answer.cached_tokens
    if timeline.first_token_at is not None:
        first_s = timeline.first_token_at - timeline.received_at
        yield "gen_ai.response.time_to_first_chunk", first_s
    if answer.finish_reason is not None:
        yield "gen_ai.response.finish_reasons", [answer.finish_reason.kind]
    if answer.error is not None:
        yield "error.type", answer.error.kind
    if request.arrival.path:
        yield "url.path", request.arrival.path
        yield "http.request.method", "POST"
    yield "kvrelay.rid", answer.rid
    yield "kvrelay.request_id", answer.request_id
    yield "kvrelay.x_request_id", request.arrival.http_id
    yield "kvrelay.attempts", answer.num_attempts
    if answer.route is not None:
        yield "kvrelay.route", answer.route.reason
        yield "kvrelay.runner_up", answer.route.runner_up
        yield "kvrelay.forecast_s", answer.route.cost.first_token_s


def _operation(answer: Answer) -> str:
    return OPERATIONS.get(answer.request.arrival.path, "generate_content")


def _span_id(answer: Answer, number: int) -> str:
    """Returns a name that the same span of the same request always has, and no other one."""
    return blake2b(f"{answer.request_id} {number}".encode(), digest_size=8).hexdigest()


def _place(span: TimelineSpan, origin_ns: int) -> tuple[int, int]:
    begin = origin_ns + round(span.start_ms * 1e6)
    return begin, begin + round(span.duration_ms * 1e6)


def _end_ns(spans: Sequence[TimelineSpan]) -> int:
    return _place(spans[-1], 0)[1] if spans else 0

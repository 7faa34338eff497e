"""Requests in flight, requests that failed, and what the router decided for both. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import msgspec

from coordinator.core.core import CoordinatorCore
from coordinator.metrics.stages import stages_of
from coordinator.timelines.ended_requests import ReportableRequest

MAX_DECISIONS = 50
MAX_IN_FLIGHT = 50
MAX_FAILED = 20


class RequestRow(msgspec.Struct, frozen=True):
    """A request that is unfinished, or has failed."""

    request_id: str
    """The cluster's name for it, which is never used twice."""
    rid: str
    state: str
    """What it is doing; of one that failed, the kind of its error."""
    age_s: float
    """Since its arrival; of one that failed, since its end."""
    prefill: str | None
    decode: str | None
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    error: str


class RoutingDecision(msgspec.Struct, frozen=True):
    """Where a request was sent, why, and whether the forecast came true."""

    request_id: str
    rid: str
    s_ago: float
    prefill: str | None
    decode: str | None
    cached_tokens: int
    prompt_tokens: int
    forecast_ms: float | None
    actual_ms: float | None
    """From the decision to the first token; None as long as that has not come, or if it took more
    than one attempt."""
    reason: str
    runner_up: str


def in_flight(core: CoordinatorCore, now: float) -> list[RequestRow]:
    """Returns the unfinished requests that came first, the oldest first."""
    return [
        _row(one, one.facts.state, now - one.timeline.received_at)
        for one in islice(core.unfinished(oldest_first=True), MAX_IN_FLIGHT)
    ]


def failed(core: CoordinatorCore, now: float) -> list[RequestRow]:
    """Returns the requests that failed lately, the last one first. One whose client left has not
    failed."""
    ended = core.statistics.ended_requests.newest_first(now)
    found = (one for one in ended if one.facts.error and one.facts.outcome != "client_left")
    return [
        _row(one, one.facts.outcome, now - (one.timeline.ended_at or now))
        for one in islice(found, MAX_FAILED)
    ]


def decisions(core: CoordinatorCore, now: float) -> list[RoutingDecision]:
    """Returns the last decisions of the router, the newest first."""
    ended = core.statistics.ended_requests.newest_first(now)
    # As many of each: which ones are the newest shows when both are put into one order.
    newest = chain(
        islice(_routed(core.unfinished()), MAX_DECISIONS), islice(_routed(ended), MAX_DECISIONS)
    )
    made = [_decision(one, now) for one in newest]
    return sorted(made, key=lambda one: one.s_ago)[:MAX_DECISIONS]


def _routed(requests: Iterator[ReportableRequest]) -> Iterator[ReportableRequest]:
    return (one for one in requests if one.forecast_s is not None)


def _row(one: ReportableRequest, state: str, age_s: float) -> RequestRow:
    facts = one.facts
    return RequestRow(
        facts.request_id,
        facts.rid,
        state,
        round(age_s, 2),
        facts.prefill_node,
        facts.decode_node,
        facts.attempts,
        facts.prompt_tokens,
        facts.completion_tokens,
        facts.error,
    )


def _decision(one: ReportableRequest, now: float) -> RoutingDecision:
    facts, timeline = one.facts, one.timeline
    routed = [attempt.routed_at for attempt in timeline.attempts if attempt.routed_at is not None]
    actual_s = stages_of(timeline, now).routed_to_first_token_s
    return RoutingDecision(
        facts.request_id,
        facts.rid,
        round(now - (routed[-1] if routed else timeline.submitted_at), 2),
        facts.prefill_node,
        facts.decode_node,
        facts.cached_tokens,
        facts.prompt_tokens,
        _ms(one.forecast_s),
        _ms(actual_s if facts.attempts == 1 else None),
        facts.route_reason,
        one.runner_up,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)

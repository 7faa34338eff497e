"""Tells operators of the requests of this coordinator, those that ended lately included. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from coordinator.answers.answer import Answer
from coordinator.core.tracked_request import TrackedRequest
from coordinator.timelines.ended_requests import ReportableRequest
from protocol.timelines.request_reports import (
    RequestFacts,
    RequestFilter,
    RequestReport,
    RequestState,
)


def reportable(tracked: TrackedRequest) -> ReportableRequest:
    """Returns what can be told of a request now."""
    answer = tracked.answer
    route = tracked.route or answer.route
    prefill = route.prefill if route is not None else None
    facts = RequestFacts(
        rid=answer.rid,
        request_id=answer.request_id,
        http_id=answer.request.arrival.http_id,
        state=state_of(tracked),
        outcome=_outcome(answer),
        error=answer.error.message if answer.error is not None else "",
        prompt_tokens=len(answer.request.tokens),
        cached_tokens=answer.cached_tokens,
        completion_tokens=len(answer.output_ids),
        transferred_pages=answer.transferred_pages,
        attempts=tracked.attempt_number,
        prefill_node=prefill.name if prefill is not None else None,
        decode_node=route.decode.name if route is not None else None,
        route_reason=route.reason if route is not None else "",
    )
    return ReportableRequest(
        facts,
        answer.timeline,
        forecast_s=route.cost.first_token_s if route is not None else None,
        runner_up=route.runner_up if route is not None else "",
    )


def reports(
    requests: Iterable[ReportableRequest], wanted: RequestFilter, coordinator: str, now: float
) -> list[RequestReport]:
    """Returns the reports of those `requests` that are wanted, in their order. With `wanted.name`
    they have spans."""
    matching = (one for one in requests if _is_wanted(one, wanted, now))
    with_spans = bool(wanted.name)
    return [one.report(coordinator, with_spans, now) for one in islice(matching, wanted.limit)]


def goes_by(name: str, rid: str) -> bool:
    """Returns True if a request's `rid` is the name that a client gave, or was made of it: the
    answers to a batch or to n > 1 are called name_0, name_1, …, or name_0_0."""
    if not name or not rid.startswith(name):
        return False
    numbers = rid[len(name) :].split("_")
    return numbers[0] == "" and all(map(str.isdecimal, numbers[1:]))


def _is_wanted(one: ReportableRequest, wanted: RequestFilter, now: float) -> bool:
    facts, timeline = one.facts, one.timeline
    if wanted.name:
        is_named = wanted.name in (facts.request_id, facts.http_id)
        return is_named or goes_by(wanted.name, facts.rid)
    if wanted.state == "unfinished" and facts.state == "ended":
        return False
    if wanted.state not in ("", "unfinished", facts.state):
        return False
    if wanted.node and wanted.node not in (facts.prefill_node, facts.decode_node):
        return False
    return now - timeline.received_at >= wanted.older_than_s


def state_of(tracked: TrackedRequest) -> RequestState:
    """Returns what a request is doing."""
    if tracked.answer.is_done:
        return "ended"
    if tracked.route is None:
        return "waiting"
    return "answering" if tracked.is_answering else "computing"


def _outcome(answer: Answer) -> str:
    if answer.error is not None:
        return answer.error.kind
    return answer.finish_reason.kind if answer.finish_reason is not None else ""

"""GET /admin/requests: the requests of all coordinators, and where the time of each went."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from coordinator.http.admin import examples
from coordinator.http.admin.token import require_token
from coordinator.http.documents.bodies import answers
from coordinator.http.documents.shapes import Variations
from coordinator.http.replies import error_reply, json_reply
from coordinator.http.requests import service_of
from coordinator.timelines.ended_requests import KEPT_S, MAX_ENDED
from protocol.timelines.request_reports import MAX_LISTED, RequestFilter, RequestReport

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_token)])

State = Literal["waiting", "computing", "answering", "ended", "unfinished", "all"]
UNKNOWN_YET = ("prefill_node", "decode_node", "first_token_ms")
LISTED = Variations(nullable=UNKNOWN_YET)
TOLD = Variations(nullable=UNKNOWN_YET, optional=("inbox_up_to_ms", "tokens"))


@router.get(
    "/requests",
    response_model=None,
    responses=answers(examples.REQUESTS, variations=LISTED),
)
async def requests(
    request: Request,
    state: Annotated[State, Query(description="unfinished: all but the ended ones")] = "all",
    node: Annotated[str, Query(description="a node that it was sent to")] = "",
    older_than_s: Annotated[float, Query(ge=0, description="the least age in seconds")] = 0.0,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="how many at most")] = 50,
) -> Response:
    """Answers the requests that run now and those that ended lately, of all coordinators; the
    unfinished ones and the newest first.

    Times are milliseconds. `computing_ms` is how much of the time to the first token was computing
    the prompt. `unanswered_coordinators` are those that did not tell of theirs in time.
    """
    wanted = RequestFilter(
        state="" if state == "all" else state, node=node, older_than_s=older_than_s, limit=limit
    )
    found = await service_of(request).find_requests(wanted)
    return json_reply(
        {
            "requests": [_summary(report) for report in found.reports],
            "unanswered_coordinators": sorted(found.unanswered),
        }
    )


@router.get(
    "/requests/{rid:path}",
    response_model=None,
    responses=answers(examples.TIMELINE, {404: "no request is known by that name"}, TOLD),
)
async def timeline(request: Request, rid: str) -> Response:
    """Answers the timeline of one request, running or ended lately, whatever its end: spans without
    gaps from its arrival on, in milliseconds.

    `rid` is `meta_info.id` of /generate, `id` of the other dialects, or the X-Request-Id. Several
    answers to one body have a timeline each, `rid_0` and so on; the name of the body finds the
    newest. What each span means is told in docs/timeline.md.
    """
    found = await service_of(request).find_requests(RequestFilter(name=rid))
    report = found.closest_to(rid)
    if report is None:
        return error_reply(404, _unknown(rid, sorted(found.unanswered)))
    return json_reply(msgspec.to_builtins(report))


def _summary(report: RequestReport) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(report)
    del values["spans"]
    return values


def _unknown(rid: str, unanswered: list[str]) -> str:
    message = (
        f"no request is known by the name {rid!r}: it is `meta_info.id` of /generate, `id` of "
        f"the other dialects, or the X-Request-Id; ended requests are kept for {KEPT_S / 60:g} "
        f"minutes, the last {MAX_ENDED} of each coordinator"
    )
    if unanswered:
        message += f"; it may be one of the coordinators that did not answer: {unanswered}"
    return message

"""SGLang's endpoints of the cache."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from coordinator.http.admin.token import require_token
from coordinator.http.documents.bodies import answers
from coordinator.http.documents.shapes import Variations
from coordinator.http.replies import error_reply, json_reply
from coordinator.http.requests import service_of

FLUSH_TIMEOUT_S = 5.0
FLUSHED = answers(
    {"message": "Cache flushed.", "pages": {"p0": 412, "d0": 97}},
    {
        400: "3 requests are running; flush when they have ended",
        401: "the admin token is missing or wrong",
        503: "not every node answered in time; try again",
    },
    Variations(by_name=("pages",)),
)

router = APIRouter(tags=["native"])


@router.get(
    "/flush_cache",
    response_model=None,
    dependencies=[Depends(require_token)],
    responses=FLUSHED,
)
@router.post(
    "/flush_cache",
    response_model=None,
    dependencies=[Depends(require_token)],
    responses=FLUSHED,
)
async def flush_cache(request: Request) -> Response:
    """Makes every node forget its cached pages; answers 400 while requests run, at whichever
    coordinator, which none does during a pause. Asks for the admin token if one is set."""
    service = service_of(request)
    counts = await service.count_everywhere()
    if not service.core.pause.is_paused and counts.num_unfinished:
        return error_reply(
            400, f"{counts.num_unfinished} requests are running; flush when they have ended"
        )
    if not service.core.pause.is_paused and counts.unanswered:
        return error_reply(503, "not every coordinator answered in time; try again")
    nodes = service.core.registry.live()
    flushed = await service.flush_cache(nodes, None, FLUSH_TIMEOUT_S)
    if len(flushed) < len(nodes):
        return error_reply(503, "not every node answered in time; try again")
    return json_reply({"message": "Cache flushed.", "pages": flushed})


@router.post(
    "/concate_and_append_request", response_model=None, responses=answers({"success": True})
)
async def concate_and_append_request() -> Response:
    """Answers 200 and does nothing. SGLang's front end asks for it after `join`, as a hint that
    texts will be joined; the joined text finds what is cached of it by itself."""
    return json_reply({"success": True})

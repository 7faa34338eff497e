"""GET /admin/events: what the live page shows, as a stream of server-sent events."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from coordinator.http.admin.token import require_token
from coordinator.http.live.feed import MAX_LISTENERS, LiveFeed
from coordinator.http.replies import error_reply

# A stream that does not end is nothing that the OpenAPI document could describe.
router = APIRouter(prefix="/admin", include_in_schema=False, dependencies=[Depends(require_token)])


@router.get("/events", response_model=None)
async def events(request: Request, snapshots: Annotated[int, Query(ge=0)] = 0) -> Response:
    """Answers an event a second with all that the live page shows, as JSON; it ends after so many
    `snapshots`, if that is not 0."""
    feed: LiveFeed = request.app.state.live_feed
    if feed.is_full:
        message = f"{MAX_LISTENERS} live pages are open already; close one and try again"
        return error_reply(503, message)
    return StreamingResponse(
        feed.events(snapshots),
        media_type="text/event-stream",
        # X-Accel-Buffering: nginx would hold events back.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )

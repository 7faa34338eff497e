"""Endpoints that the HTTP contract names and this version lacks: each says so with a 400."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from coordinator.http.admin_token import require_token
from coordinator.http.replies import error_reply

PATHS = (
    "/abort_request",
    "/v1/loads",
    "/metrics",
    "/open_session",
    "/close_session",
    "/concate_and_append_request",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/admin/",
    "/admin/requests",
    "/admin/requests/{rid}",
)

router = APIRouter(include_in_schema=False)


async def not_yet(request: Request) -> Response:
    """Answers 400: the endpoint exists in the contract and not in this version."""
    return error_reply(400, f"{request.url.path} is not supported by this version of kvrelay")


for path in PATHS:
    router.add_api_route(
        path,
        not_yet,
        methods=["GET", "POST"],
        response_model=None,
        dependencies=[Depends(require_token)] if path.startswith("/admin") else [],
    )

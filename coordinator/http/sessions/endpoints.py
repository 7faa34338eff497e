"""POST /open_session and /close_session, as SGLang has them."""

from __future__ import annotations

import secrets
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request, Response

from coordinator.http.checking import checked
from coordinator.http.documents.bodies import answers, takes
from coordinator.http.errors import BadRequest
from coordinator.http.replies import FAULTS, fault_reply, json_reply
from coordinator.http.requests import object_of, service_of
from coordinator.http.sessions.params import check_name

router = APIRouter(tags=["native"])


class OpenSessionBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /open_session. Unknown keys are ignored, as SGLang does."""

    capacity_of_str_len: Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]
    session_id: str | None = None


class CloseSessionBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /close_session. Unknown keys are ignored, as SGLang does."""

    session_id: str


@router.get("/open_session", response_model=None, include_in_schema=False)
@router.post(
    "/open_session",
    response_model=None,
    openapi_extra=takes(OpenSessionBody, {"capacity_of_str_len": 100_000, "session_id": "mine"}),
    responses=answers(
        "mine",
        {
            400: "a session 'mine' is open already",
            503: "Redis, which keeps sessions, is unreachable",
        },
    ),
)
async def open_session(request: Request) -> Response:
    """Opens a session whose prompts have at most `capacity_of_str_len` characters, under
    `session_id` or a name that is made up. Answers its name; 400 if one of that name is open."""
    try:
        body = checked(await object_of(request), OpenSessionBody)
        session_id = body.session_id if body.session_id is not None else secrets.token_hex(16)
        check_name(session_id, "session_id")
        if not await service_of(request).sessions.open(session_id, body.capacity_of_str_len):
            raise BadRequest(f"a session {session_id!r} is open already", "session_id")
    except FAULTS as error:
        return fault_reply(error)
    return json_reply(session_id)


@router.get("/close_session", response_model=None, include_in_schema=False)
@router.post(
    "/close_session",
    response_class=Response,
    response_model=None,
    openapi_extra=takes(CloseSessionBody, {"session_id": "mine"}),
    responses=answers(None, {503: "Redis, which keeps sessions, is unreachable"}),
)
async def close_session(request: Request) -> Response:
    """Forgets a session. Answers 200 even if there is none; its turns that run go on."""
    try:
        body = checked(await object_of(request), CloseSessionBody)
        await service_of(request).sessions.close(body.session_id)
    except FAULTS as error:
        return fault_reply(error)
    return Response(status_code=200)

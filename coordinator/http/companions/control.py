"""What ends or holds requests: /abort_request, /pause_generation and /continue_generation."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from coordinator.http.admin.token import bearer, require_token
from coordinator.http.checking import checked, without_nulls
from coordinator.http.documents.bodies import answers, takes
from coordinator.http.replies import FAULTS, fault_reply, json_reply
from coordinator.http.requests import object_of, service_of
from protocol.messages import PauseMode

PAUSED = {"message": "Generation paused successfully.", "status": "ok"}
CONTINUED = {"message": "Generation continued successfully.", "status": "ok"}
NO_TOKEN = "the admin token is missing or wrong"
NO_REDIS = "Redis is unreachable, nothing was changed"

router = APIRouter(tags=["native"])


class AbortBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /abort_request. Unknown keys are ignored, as SGLang does."""

    rid: str | None = None
    abort_all: bool | None = None


class PauseBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /pause_generation. Unknown keys are ignored, as SGLang does."""

    mode: PauseMode = "abort"


@router.post(
    "/abort_request",
    response_class=Response,
    response_model=None,
    openapi_extra=takes(AbortBody, {"rid": "my-request"}),
    responses=answers(None, {401: f"`abort_all`: {NO_TOKEN}"}),
)
async def abort_request(request: Request) -> Response:
    """Ends the request `rid`, or the answers `rid_0`, `rid_1`, … to its batch, at whatever
    coordinator they are: with finish_reason abort and what they have answered so far. Answers 200
    whether there is one or not. `abort_all` ends all requests and asks for the admin token, if one
    is set."""
    try:
        body = checked(await object_of(request), AbortBody)
    except FAULTS as error:
        return fault_reply(error)
    if body.abort_all:
        require_token(request, await bearer(request))
    service_of(request).abort(body.rid or "", bool(body.abort_all))
    return Response(status_code=200)


@router.post(
    "/pause_generation",
    response_model=None,
    dependencies=[Depends(require_token)],
    openapi_extra=takes(PauseBody, {"mode": "retract"}),
    responses=answers(PAUSED, {401: NO_TOKEN, 503: NO_REDIS}),
)
async def pause_generation(request: Request) -> Response:
    """Lets no node of the cluster generate until /continue_generation. Running requests end
    (`mode` abort, the default) or go on afterwards with the very same tokens (retract, in_place);
    new ones wait, for as long as the pause lasts. Asks for the admin token if one is set."""
    try:
        body = checked(without_nulls(await object_of(request)), PauseBody)
        await service_of(request).set_pause(body.mode)
    except FAULTS as error:
        return fault_reply(error)
    return json_reply(PAUSED)


@router.post(
    "/continue_generation",
    response_model=None,
    dependencies=[Depends(require_token)],
    responses=answers(CONTINUED, {401: NO_TOKEN, 503: NO_REDIS}),
)
async def continue_generation(request: Request) -> Response:
    """Ends a pause of the cluster. Asks for the admin token if one is set."""
    try:
        await service_of(request).set_pause(None)
    except FAULTS as error:
        return fault_reply(error)
    return json_reply(CONTINUED)

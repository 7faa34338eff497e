"""Whether this process is up, whether the cluster serves, and whether tokens come."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from coordinator.answers.request import Request as GenerateRequest
from coordinator.core.errors import RequestRefused, TooBusy
from coordinator.http.documents.bodies import answers
from coordinator.http.replies import error_reply
from coordinator.http.requests import service_of
from coordinator.mailbox import Mailbox
from coordinator.service import Service
from protocol.sampling import Sampling

HEALTH_TIMEOUT_S = 20.0
OTHERS_FIRST_S = 2.0
"""While requests run, their tokens are waited for so long before one is asked for."""
POLL_S = 0.05
"""How often it is looked whether tokens of other requests have come."""
MAX_WATCHER_NAME = 200
"""How much is kept of the address and the user agent of who asks whether requests are served."""
ONE_TOKEN = GenerateRequest(tokens=[0], sampling=Sampling(temperature=0.0), max_new_tokens=1)

router = APIRouter(tags=["native"])


@router.head("/health", response_model=None, include_in_schema=False)
@router.get("/health", response_class=Response, response_model=None, responses=answers(None))
@router.get("/ping", response_class=Response, response_model=None, responses=answers(None))
async def health() -> Response:
    """Answers 200 while this process is up."""
    return Response(status_code=200)


@router.head("/ready", response_model=None, include_in_schema=False)
@router.get(
    "/ready",
    response_class=Response,
    response_model=None,
    responses=answers(None, {503: "no node has come yet, or none is there any more"}),
)
async def ready(request: Request) -> Response:
    """Answers 200 while requests are served: from the first node on, until none has been there for
    15 seconds or the process was told to stop."""
    service = service_of(request)
    now = service.now()
    host = request.client.host if request.client is not None else ""
    service.farewell.asked(
        f"{host} {request.headers.get('user-agent', '')}"[:MAX_WATCHER_NAME], now
    )
    if service.is_ready(now):
        return Response(status_code=200)
    return error_reply(503, service.why_not_ready)


@router.head("/health_generate", response_model=None, include_in_schema=False)
@router.get(
    "/health_generate",
    response_class=Response,
    response_model=None,
    responses=answers(None, {503: "no token came"}),
)
async def health_generate(request: Request) -> Response:
    """Answers 200 as soon as a token comes, of any request; if none comes, it asks for one. A full
    queue is no illness, as tokens of others come then, and neither is a pause."""
    service = service_of(request)
    asked_at = service.now()
    mailbox: Mailbox | None = None
    try:
        while service.now() < asked_at + HEALTH_TIMEOUT_S:
            if service.core.pause.is_paused or service.core.last_tokens_at >= asked_at:
                return Response(status_code=200)
            if service.core.num_running and service.now() < asked_at + OTHERS_FIRST_S:
                await asyncio.sleep(POLL_S)
                continue
            try:
                mailbox = mailbox or service.submit(ONE_TOKEN)
            except TooBusy:
                await asyncio.sleep(POLL_S)
                continue
            except RequestRefused as error:
                return error_reply(503, str(error))
            await _wait_a_little(mailbox)
            if mailbox.answer.error is not None:
                return error_reply(503, mailbox.answer.error.message)
        return error_reply(503, f"no token within {HEALTH_TIMEOUT_S:g} s")
    finally:
        _cancel(service, mailbox)


async def _wait_a_little(mailbox: Mailbox) -> None:
    try:
        await mailbox.finished(POLL_S)
    except asyncio.TimeoutError:
        pass


def _cancel(service: Service, mailbox: Mailbox | None) -> None:
    if mailbox is not None and not mailbox.answer.is_done:
        service.cancel(mailbox.answer.request_id)

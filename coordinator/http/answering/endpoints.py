"""POST endpoints that are written to ASGI itself: most load comes through them, and FastAPI's
routing and response objects would take a third of a request's time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.http.checking import parse_object
from coordinator.http.errors import STATUS_CODES, AnswerFailed, ClientLeft, ErrorForm
from coordinator.http.replies import FAULTS, answer_error_reply, error_reply, fault_reply
from coordinator.http.wire.arrivals import arrival_of
from coordinator.http.wire.bodies import read_body
from coordinator.http.wire.direct_writer import direct_writer
from coordinator.http.wire.exchange import Exchange

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One POST request: the JSON object that came, and where its response goes."""

    body: dict[str, Any]
    exchange: Exchange
    receive: Receive
    """Tells when the client leaves; the body has been read from it."""
    scope: Scope


class PostHandler(Protocol):
    """Answers the POST requests to one path."""

    @property
    def errors(self) -> ErrorForm:
        """How its dialect writes errors."""
        ...

    async def answer(self, call: Call) -> None:
        """Sends the whole response. May raise what FAULTS has and, until the response has started
        or as its last word in a stream, AnswerFailed."""
        ...


class PostEndpoints:
    """An ASGI application that answers POST requests to the paths of its handlers, and passes all
    other requests on to `app`."""

    def __init__(
        self, app: ASGIApp, handlers: Mapping[str, PostHandler], max_body_bytes: int
    ) -> None:
        self._app = app
        self._handlers = handlers
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["path"]) if scope["type"] == "http" else None
        if handler is None:
            return await self._app(scope, receive, send)
        arrival = arrival_of(scope, time.monotonic())
        exchange = Exchange(arrival, send, direct_writer(scope), handler.errors)
        try:
            await self._answer(handler, scope, receive, exchange)
        except ClientLeft:
            return
        except AnswerFailed as failure:
            await _fail(exchange, failure, handler.errors)
        except FAULTS as error:
            await exchange.reply(fault_reply(error, handler.errors))
        except Exception:
            log.exception("POST %s %s failed", scope["path"], exchange.request_id)
            await exchange.fail()

    async def _answer(
        self, handler: PostHandler, scope: Scope, receive: Receive, exchange: Exchange
    ) -> None:
        if scope["method"] != "POST":
            return await exchange.reply(_not_allowed(scope, handler.errors))
        raw = await read_body(scope, receive, self._max_body_bytes)
        await handler.answer(Call(parse_object(raw), exchange, receive, scope))


async def _fail(exchange: Exchange, failure: AnswerFailed, errors: ErrorForm) -> None:
    """Ends a response whose answer has failed: as its status, or as the end of its stream."""
    error = failure.error
    if not exchange.has_started:
        return await exchange.reply(answer_error_reply(error, errors))
    await exchange.end(errors.last_events(STATUS_CODES[error.kind], error.message))


def _not_allowed(scope: Scope, errors: ErrorForm) -> Response:
    message = f"{scope['method']} {scope['path']}: it takes POST"
    reply = error_reply(405, message, form=errors)
    reply.headers["Allow"] = "POST"
    return reply

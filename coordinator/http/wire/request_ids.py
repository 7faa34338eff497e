"""X-Request-Id: every response carries one, and the log names requests by it."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-request-id"
SANE = re.compile(rb"[\x21-\x7e]{1,128}")
"""Printable ASCII without spaces: it goes into headers and log lines as it is."""
KEY = "kvrelay.request_id"
"""Where the id is kept in the scope of a request."""


def request_id(scope: Scope) -> str:
    """Returns the client's id of an HTTP request if it sent a sane one, else one that is made up.
    The answer is the same each time."""
    known: str | None = scope.get(KEY)
    if known is None:
        sent = next((value for key, value in scope["headers"] if key == HEADER), b"")
        known = sent.decode("ascii") if SANE.fullmatch(sent) else uuid.uuid4().hex
        scope[KEY] = known
    return known


class RequestIds:
    """An ASGI middleware that puts X-Request-Id on every response of `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        header = (HEADER, request_id(scope).encode("ascii"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self._app(scope, receive, send_with_id)

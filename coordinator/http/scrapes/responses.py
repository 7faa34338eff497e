"""Counts HTTP responses by endpoint and status, in an ASGI middleware around everything."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.metrics import table
from protocol.telemetry.metric import Measures

COUNTED_APART = (
    "/generate",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)
OTHER = "other"


class CountResponses:
    """An ASGI application that counts the responses of `app`."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path: str = scope["path"]
        endpoint = path if path in COUNTED_APART else OTHER

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._measures.count(table.RESPONSES, endpoint, str(message["status"]))
            await send(message)

        await self._app(scope, receive, counted_send)

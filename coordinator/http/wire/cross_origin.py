"""CORS: pages of which origins may call from a browser. An ASGI middleware, before API keys."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.http.wire.request_ids import RequestIds


class CrossOrigin:
    """An ASGI application that lets pages of some origins call `app`: it answers the question that
    a browser asks before a call (preflight), and marks the responses to calls.

    Keys travel in headers that a page sets itself, so no cookies are allowed.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._calls = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
        self._questions = RequestIds(self._calls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._questions if _is_preflight(scope) else self._calls
        await app(scope, receive, send)


def _is_preflight(scope: Scope) -> bool:
    """Returns True for what `CORSMiddleware` answers itself, without an X-Request-Id."""
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return {b"origin", b"access-control-request-method"} <= names

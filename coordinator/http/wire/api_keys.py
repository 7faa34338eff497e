"""API keys: who may call at all. An ASGI middleware, before every endpoint.

GET /health, /ready, /metrics          open: probes and scrapers have no keys
GET /admin/ and its files              open: they ask for the token, and hold no data
/admin/*, with an admin token set      the admin token alone (`admin/token.py` asks for it)
everything else                        an API key, or the admin token
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.http.error_forms import error_form_of
from coordinator.http.live.page import PAGE_PATHS
from coordinator.http.replies import error_reply
from coordinator.http.wire.arrivals import API_KEY_NUMBER
from coordinator.http.wire.exchange import Exchange
from coordinator.http.wire.request_ids import request_id
from coordinator.timelines.arrival import Arrival

OPEN_PATHS = ("/health", "/ready", "/metrics", *PAGE_PATHS)
CHALLENGE = {"WWW-Authenticate": "Bearer"}
NO_KEY = "send an API key as `Authorization: Bearer …` or `x-api-key: …`"
WRONG_KEY = "the API key that was sent is not accepted here; ask who runs this cluster for one"


class ApiKeys:
    """An ASGI application that passes requests with one of the keys on to `app`, and answers all
    others with a 401."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], admin_token: str) -> None:
        self._app = app
        accepted = [*keys, admin_token] if admin_token else keys
        self._accepted = [key.encode() for key in accepted]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            number = self._key_number(scope)
            if number is None:
                return await Exchange(Arrival(request_id(scope)), send).reply(
                    _unauthorized(scope["path"], WRONG_KEY if any(_shown_keys(scope)) else NO_KEY)
                )
            scope[API_KEY_NUMBER] = number
        await self._app(scope, receive, send)

    def _key_number(self, scope: Scope) -> int | None:
        """Returns which of the keys the request shows; None if it shows none. How long that takes
        does not depend on how much of a wrong key is right, nor on which of the keys is shown."""
        found: int | None = None
        for given in _shown_keys(scope):
            for number, key in enumerate(self._accepted):
                found = number if secrets.compare_digest(given, key) else found
        return found


def _shown_keys(scope: Scope) -> list[bytes]:
    """Returns what a request shows in the place of a key."""
    shown = [value.strip() for name, value in scope["headers"] if name == b"x-api-key"]
    for name, value in scope["headers"]:
        scheme, _, token = value.strip().partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            shown.append(token.strip())
    return shown


def _unauthorized(path: str, sentence: str) -> Response:
    """Returns a 401 in the form of errors that clients of this path read."""
    reply = error_reply(401, sentence, code="invalid_api_key", form=error_form_of(path))
    reply.headers.update(CHALLENGE)
    return reply

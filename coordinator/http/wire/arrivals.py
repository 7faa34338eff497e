"""How an HTTP request came: what the middlewares know of it. Pure."""

from __future__ import annotations

from starlette.types import Scope

from coordinator.http.wire.request_ids import request_id
from coordinator.timelines.arrival import Arrival

API_KEY_NUMBER = "kvrelay.api_key_number"
"""Where the number of the API key that was shown is kept in the scope of a request."""


def arrival_of(scope: Scope, now: float) -> Arrival:
    """Returns the arrival of an HTTP request whose head has come now."""
    return Arrival(request_id(scope), now, api_key_number=scope.get(API_KEY_NUMBER))

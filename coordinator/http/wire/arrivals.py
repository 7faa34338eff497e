"""How an HTTP request came: what the middlewares know of it. Pure."""

from __future__ import annotations

from starlette.types import Scope

from coordinator.http.wire.request_ids import request_id
from coordinator.timelines.arrival import Arrival
from coordinator.timelines.trace_context import TraceContext

API_KEY_NUMBER = "kvrelay.api_key_number"
"""Where the number of the API key that was shown is kept in the scope of a request."""


def arrival_of(scope: Scope, now: float) -> Arrival:
    """Returns the arrival of an HTTP request whose head has come now."""
    return Arrival(
        request_id(scope),
        now,
        path=scope["path"],
        trace=_trace_of(scope),
        api_key_number=scope.get(API_KEY_NUMBER),
    )


def _trace_of(scope: Scope) -> TraceContext | None:
    """Returns the trace that the client names in its headers."""
    parent, states = b"", []
    for name, value in scope["headers"]:
        if name == b"traceparent":
            parent = value
        elif name == b"tracestate":
            states.append(value)
    if not parent:
        return None
    return TraceContext.parse(parent.decode("latin-1"), b",".join(states).decode("latin-1"))

"""`Arrival`: how a request came to the coordinator. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coordinator.timelines.trace_context import TraceContext


@dataclass(frozen=True)
class Arrival:
    """Names the HTTP request that a prompt came with, and says when. Times are monotonic seconds of
    the coordinator's clock."""

    http_id: str = ""
    """Its X-Request-Id; "" for a request that came in another way."""
    received_at: float | None = None
    """When its head had come; the body may have come later. None: as it was submitted."""
    parsed_at: float | None = None
    """When its body was checked, and its chat, if it has one, was a text."""

    path: str = ""
    """The path of its endpoint."""
    trace: TraceContext | None = None
    """The client's trace that it belongs to; None: it begins one."""
    api_key_number: int | None = None
    """Which of the API keys it has shown; None if none is asked for."""

    def tenant(self, cache_salt: str) -> str:
        """Returns the name of the tenant whose share of the cluster a request takes: that of the
        API key, else of the cache_salt, else "", which all others share."""
        if self.api_key_number is not None:
            return f"key {self.api_key_number}"
        return f"salt {cache_salt}" if cache_salt else ""

    def parsed(self, now: float) -> Arrival:
        """Returns the same arrival, whose body is checked now."""
        return replace(self, parsed_at=now)


UNKNOWN_ARRIVAL = Arrival()
"""That of a request which no HTTP request has brought."""

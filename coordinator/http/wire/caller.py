"""Who sends a request: how the log names it, and which tenant it belongs to. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from coordinator.http.wire.request_ids import request_id

KEY = "kvrelay.api_key_number"
"""Where the number of the API key that was shown is kept in the scope of a request."""


@dataclass(frozen=True)
class Caller:
    """The sender of one HTTP request."""

    http_id: str = ""
    """Its X-Request-Id."""
    api_key_number: int | None = None
    """Which of the API keys it has shown; None if none is asked for."""

    def tenant(self, cache_salt: str) -> str:
        """Returns the name of the tenant whose share of the cluster a request takes: that of the
        API key, else of the cache_salt, else "", which all others share."""
        if self.api_key_number is not None:
            return f"key {self.api_key_number}"
        return f"salt {cache_salt}" if cache_salt else ""


def caller_of(scope: Scope) -> Caller:
    """Returns who sent an HTTP request."""
    return Caller(request_id(scope), scope.get(KEY))

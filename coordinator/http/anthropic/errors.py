"""Errors in Anthropic's form, which the paths below /v1/messages have. Pure."""

from __future__ import annotations

import msgspec

from coordinator.http.errors import ErrorForm

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    501: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""The `type` of an error by its status code; every other one is an api_error."""


def anthropic_error(
    status_code: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """Returns an error as Anthropic's clients read it. They know no `param` and no `code`."""
    error = {"type": KINDS.get(status_code, "api_error"), "message": message}
    return {"type": "error", "error": error}


def _last_events(status_code: int, message: str) -> bytes:
    error = msgspec.json.encode(anthropic_error(status_code, message))
    return b"event: error\ndata: %b\n\n" % error


ANTHROPIC_ERRORS = ErrorForm(anthropic_error, _last_events)

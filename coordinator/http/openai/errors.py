"""Errors in OpenAI's form, which every path of /v1 has that is in no other dialect. Pure."""

from __future__ import annotations

from coordinator.http.errors import ErrorForm
from coordinator.http.wire.events import event_of

DONE = b"data: [DONE]\n\n"
SERVER_ERROR = ("server_error", None)
KINDS: dict[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    501: ("invalid_request_error", "unsupported"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "timeout"),
}
"""The `type` of an error by its status code, and its `code` where the error has none itself."""


def openai_error(
    status_code: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """Returns an error as OpenAI's clients read it."""
    kind, usual_code = KINDS.get(status_code, SERVER_ERROR)
    error = {"message": message, "type": kind, "param": param, "code": code or usual_code}
    return {"error": error}


def _last_events(status_code: int, message: str) -> bytes:
    return event_of(openai_error(status_code, message)) + DONE


OPENAI_ERRORS = ErrorForm(openai_error, _last_events)

"""Error bodies and JSON replies, in the shapes that clients of SGLang know."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Response

from coordinator.answers.answer import AnswerError
from coordinator.core.errors import RequestRefused, TooBusy, Unavailable
from coordinator.http.schema import BadRequest
from coordinator.http.sglang import ERROR_TYPES, STATUS_CODES

FAULTS = (BadRequest, RequestRefused)
"""What refusing a request raises."""


def fault_status(error: Exception) -> int:
    """Returns the status code that stands for an exception of one of the types in FAULTS."""
    if isinstance(error, Unavailable):
        return 503
    return 429 if isinstance(error, TooBusy) else 400


def answer_error_reply(error: AnswerError) -> Response:
    """Returns the reply to a request that has no answer."""
    return error_reply(STATUS_CODES[error.kind], error.message)


def json_reply(
    body: Any, status_code: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Returns a response with `body` as JSON."""
    return Response(msgspec.json.encode(body), status_code, headers, media_type="application/json")


def error_reply(status_code: int, message: str) -> Response:
    """Returns a response with an error in SGLang's shape: a flat object for 503, else a nested one.
    A 429 says when to come back."""
    if status_code == 503:
        return json_reply(
            {
                "object": "error",
                "message": message,
                "type": ERROR_TYPES[503],
                "param": None,
                "code": 503,
            },
            503,
        )
    headers = {"Retry-After": "1"} if status_code == 429 else None
    return json_reply({"error": {"message": message}}, status_code, headers)

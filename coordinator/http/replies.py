"""Error bodies and JSON replies, in the shapes that clients of SGLang know."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Response

from coordinator.answers.generation import Abort
from coordinator.http.schema import BadRequest
from coordinator.service import TooBusy, Unavailable

ERROR_TYPES = {400: "BadRequest", 429: "TooManyRequests", 503: "ServiceUnavailable"}
FAULTS = (BadRequest, TooBusy, Unavailable)
"""What refusing a request raises."""


def fault_status(error: Exception) -> int:
    """The status code of one of FAULTS."""
    if isinstance(error, BadRequest):
        return 400
    return 429 if isinstance(error, TooBusy) else 503


def json_reply(
    body: Any, status_code: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(msgspec.json.encode(body), status_code, headers, media_type="application/json")


def error_reply(status_code: int, message: str) -> Response:
    """503 has a flat object, every other error a nested one; 429 says when to come back."""
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


def stream_error(error: Abort) -> dict[str, Any]:
    """An error inside an event stream."""
    return {
        "error": {
            "message": error.message,
            "type": ERROR_TYPES.get(error.status_code, "InternalServerError"),
            "code": error.status_code,
            "retryable": error.status_code in (429, 503),
        }
    }

"""JSON replies, and the replies that say what is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Response

from coordinator.answers.answer import AnswerError
from coordinator.core.errors import DuplicateRequest, RequestRefused, TooBusy, Unavailable
from coordinator.http.errors import (
    NATIVE_ERRORS,
    STATUS_CODES,
    BadRequest,
    BodyTooLarge,
    ErrorForm,
    NotServed,
)
from coordinator.sessions.store import SessionRefused

FAULTS = (BadRequest, BodyTooLarge, RequestRefused)
"""What refusing a request raises."""


def fault_status(error: Exception) -> int:
    """Returns the status code that stands for an exception of one of the types in FAULTS."""
    if isinstance(error, BodyTooLarge):
        return 413
    if isinstance(error, NotServed):
        return 404
    if isinstance(error, Unavailable):
        return 503
    return 429 if isinstance(error, TooBusy) else 400


def fault_reply(error: Exception, form: ErrorForm = NATIVE_ERRORS) -> Response:
    """Returns the reply to a request that was refused with an exception of a type in FAULTS."""
    param = code = None
    if isinstance(error, BadRequest):
        param, code = error.param, error.code
    if isinstance(error, DuplicateRequest):
        param = "rid"
    if isinstance(error, SessionRefused):
        param = "session_params"
    retry_after_s = error.retry_after_s if isinstance(error, TooBusy) else 1
    return error_reply(fault_status(error), str(error), param, code, form, retry_after_s)


def answer_error_reply(error: AnswerError, form: ErrorForm = NATIVE_ERRORS) -> Response:
    """Returns the reply to a request that has no answer."""
    status = STATUS_CODES[error.kind]
    return error_reply(status, error.message, form=form, retry_after_s=error.retry_after_s)


def json_reply(
    body: Any, status_code: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Returns a response with `body` as JSON."""
    return Response(msgspec.json.encode(body), status_code, headers, media_type="application/json")


def error_reply(
    status_code: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    form: ErrorForm = NATIVE_ERRORS,
    retry_after_s: int = 1,
) -> Response:
    """Returns a response with an error in a dialect's form. A 429 or 503 says when to come back; a
    413 closes the connection, since the rest of the body stays unread."""
    headers = {}
    if status_code in (429, 503):
        headers["Retry-After"] = str(retry_after_s)
    elif status_code == 413:
        headers["Connection"] = "close"
    return json_reply(form.body(status_code, message, param, code), status_code, headers)

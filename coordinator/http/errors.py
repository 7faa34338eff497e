"""What may be wrong with a request, the status codes that say so, and their names. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.answers.answer import AnswerError, ErrorKind
from coordinator.http.wire.events import event_of

STATUS_CODES: dict[ErrorKind, int] = {
    "bad_request": 400,
    "too_busy": 429,
    "client_left": 499,  # nobody reads it; it is what access logs of proxies show
    "unavailable": 503,
    "timed_out": 504,
    "ends_nodes": 500,
}
ERROR_TYPES = {
    400: "BadRequest",
    401: "Unauthorized",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "ContentTooLarge",
    429: "TooManyRequests",
    499: "ClientClosedRequest",
    501: "NotImplemented",
    503: "ServiceUnavailable",
    504: "GatewayTimeout",
}
"""The `type` of an error by its status code; every other one is an InternalServerError."""
INTERNAL_ERROR = "internal error; the coordinator's log has the details"
RETRYABLE = (429, 503)
"""The same request may succeed a little later."""


class BadRequest(Exception):
    """The request is wrong, for a reason that the client can read. The status code is 400.

    `param` names the key of the body that is wrong, where it is one. `code` is a name for the
    reason, for dialects whose clients look for one.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NotServed(BadRequest):
    """The request names a model that is not served. The status code is 404."""


class BodyTooLarge(Exception):
    """The body is larger than --max-body-bytes. The status code is 413."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body has more than the {max_bytes} bytes that are taken at most")


class ClientLeft(Exception):
    """The client has disconnected before its request was whole."""


class AnswerFailed(Exception):
    """One of the answers that a client waits for has ended without success."""

    def __init__(self, error: AnswerError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True)
class ErrorForm:
    """How one dialect of HTTP writes errors."""

    body: Callable[[int, str, str | None, str | None], dict[str, object]]
    """Makes a reply of a status code, a message, the name of the wrong key and a code."""
    last_events: Callable[[int, str], bytes]
    """Makes the end of a stream of events of a status code and a message."""


def error_type(status_code: int) -> str:
    """Returns the name of a status code, as errors carry it in `type`."""
    return ERROR_TYPES.get(status_code, "InternalServerError")


def error_object(
    status_code: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """Returns the one shape of an error on every endpoint but those of /v1. It has the status code
    as its code, and `code` not at all."""
    error = {
        "message": message,
        "type": error_type(status_code),
        "code": status_code,
        "param": param,
    }
    return {"error": error}


def event_error_object(status_code: int, message: str) -> dict[str, object]:
    """Returns an error as an event of a stream carries it: it says too whether to try again."""
    error = {
        "message": message,
        "type": error_type(status_code),
        "code": status_code,
        "param": None,
        "retryable": status_code in RETRYABLE,
    }
    return {"error": error}


def _last_events(status_code: int, message: str) -> bytes:
    return event_of(event_error_object(status_code, message)) + b"data: [DONE]\n\n"


NATIVE_ERRORS = ErrorForm(error_object, _last_events)

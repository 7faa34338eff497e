"""The errors of the client, one class for each thing that a caller can do about them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from protocol.errors import UserError

SHOWN_CHARACTERS = 200
"""How much of an answer is shown that is no error object."""


class ClientError(UserError):
    """The cluster cannot be reached or has refused the request, for the reason in the message."""

    did_nothing: ClassVar[bool] = False
    """True if the cluster has surely not begun with the request, so that it can be sent again."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        param: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        """`status` is the HTTP status, None if there was no answer; `param` names the key of the
        body that is wrong; before `retry_after_s` the cluster does not want to be asked again."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.retry_after_s = retry_after_s


class ClusterUnreachable(ClientError):
    """No connection could be made, so nothing was sent."""

    did_nothing = True


class ConnectionBroken(ClientError):
    """The connection ended before the answer was whole."""


class AnswerTimedOut(ClientError):
    """The next part of an answer did not come in time, says the client or (504) the cluster."""


class InvalidCall(ClientError):
    """The request is wrong (400, 413, 422); `param` names the key if it is one."""


class AccessDenied(ClientError):
    """The API key or the admin token is missing or wrong (401, 403)."""


class NothingThere(ClientError):
    """There is no such endpoint, model or node (404)."""


class ClusterBusy(ClientError):
    """The cluster has as many requests as it takes (429)."""

    did_nothing = True


class ClusterUnavailable(ClientError):
    """No node could serve the request up to the cluster's patience (503)."""

    did_nothing = True


class ClusterFault(ClientError):
    """The cluster failed, or lacks what was asked for (500, 501)."""


class MalformedAnswer(ClientError):
    """What came is not what the endpoint promises; another kind of server may listen there."""


CLASSES: Mapping[int, type[ClientError]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: NothingThere,
    502: ConnectionBroken,  # a proxy's word for a coordinator that died before it answered
    429: ClusterBusy,
    503: ClusterUnavailable,
    504: AnswerTimedOut,
}


class _ErrorBody(msgspec.Struct):
    """The body of an error in the native shape and in OpenAI's."""

    error: dict[str, Any]


def error_of(status: int, body: bytes, retry_after: str | None = None) -> ClientError:
    """Returns the error that a status other than 200 stands for. `retry_after` is the header of
    that name, in seconds."""
    fault = InvalidCall if 400 <= status < 500 else ClusterFault
    kind = CLASSES.get(status, fault)
    wait_s = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        shown = body[:SHOWN_CHARACTERS].decode(errors="replace")
        return kind(f"status {status}: {shown}", status, retry_after_s=wait_s)
    message = str(error.get("message") or f"status {status}")
    return kind(message, status, error.get("param"), wait_s)

"""What the OpenAPI document says of refusals, which are alike at all endpoints of a dialect."""

from __future__ import annotations

from typing import Any

from coordinator.http.documents.shapes import Variations, shape_of
from coordinator.http.error_forms import error_form_of
from coordinator.http.errors import RETRYABLE
from coordinator.http.wire.api_keys import OPEN_PATHS

EVERYWHERE = {500: "an error of the coordinator's own; its log has the details"}
WITH_KEYS = {401: "an API key is asked for, or the admin token, and it is missing or wrong"}
WITH_PARAMETERS = {400: "a parameter is wrong; `param` names it"}
WITH_BODY = {
    400: "the body is wrong; `param` names the key",
    413: "the body is larger than --max-body-bytes",
}
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
CHALLENGE = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}


def complete(path: str, operation: dict[str, Any]) -> None:
    """Adds to an operation at `path` those refusals that come from what all endpoints share, and to
    all refusals how they look."""
    responses = operation["responses"]
    # FastAPI's own form of refusals, which kvrelay has replaced.
    responses.pop("422", None)
    for code, what in _shared(path, operation).items():
        responses.setdefault(str(code), {"description": what})
    for code, response in responses.items():
        if int(code) >= 400:
            response.update(_refusal(path, int(code), response))
    operation["responses"] = dict(sorted(responses.items()))


def _shared(path: str, operation: dict[str, Any]) -> dict[int, str]:
    shared = dict(EVERYWHERE)
    if operation.get("parameters"):
        shared |= WITH_PARAMETERS
    if "requestBody" in operation:
        shared |= WITH_BODY
    return shared if path in OPEN_PATHS else shared | WITH_KEYS


def _refusal(path: str, code: int, response: dict[str, Any]) -> dict[str, Any]:
    body = error_form_of(path).body(code, response["description"], None, None)
    # `param` and `code` are null in some errors, and not in others.
    schema = shape_of(body, Variations(nullable=("code",)))
    described: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
    described["content"]["application/json"]["example"] = body
    if code in RETRYABLE:
        described["headers"] = RETRY_AFTER
    elif code == 401:
        described["headers"] = CHALLENGE
    return described

"""What the OpenAPI document says of bodies that FastAPI does not read itself."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.http.errors import error_object

Responses = dict[int | str, dict[str, Any]]


def takes(kind: type[msgspec.Struct], example: Any) -> dict[str, Any]:
    """Returns the `openapi_extra` of a route that takes a body of the struct `kind`."""
    _, schemas = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    (schema,) = schemas.values()  # its fields are no structs: nothing is referred to
    is_required = "required" in schema
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": is_required, "content": content}}


def answers(example: Any, refusals: dict[int, str]) -> Responses:
    """Returns the `responses` of a route that answers like `example` (None: with an empty body).
    `refusals` are its other statuses, each with a message that comes with it."""
    shown: dict[str, Any] = {"description": "done"}
    if example is not None:
        shown["content"] = {"application/json": {"example": example}}
    responses: Responses = {200: shown}
    for code, message in refusals.items():
        content = {"application/json": {"example": error_object(code, message)}}
        responses[code] = {"description": message, "content": content}
    return responses

"""What the OpenAPI document says of bodies that FastAPI does not read itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from coordinator.http.documents.shapes import NO_VARIATIONS, Variations, shape_of

Responses = dict[int | str, dict[str, Any]]
NO_REFUSALS: dict[int, str] = {}


def takes(kind: type[msgspec.Struct], example: Any) -> dict[str, Any]:
    """Returns the `openapi_extra` of a route that takes a body of the struct `kind`."""
    _, schemas = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    (schema,) = schemas.values()  # its fields are no structs: nothing is referred to
    is_required = "required" in schema
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": is_required, "content": content}}


def answers(
    example: Any,
    refusals: Mapping[int, str] = NO_REFUSALS,
    variations: Variations = NO_VARIATIONS,
) -> Responses:
    """Returns the `responses` of a route that answers like `example` (None: with an empty body), as
    far as it does not vary. `refusals` are its other statuses, each with what it means."""
    shown: dict[str, Any] = {"description": "done"}
    if example is not None:
        shown["content"] = json_content(example, variations)
    responses: Responses = {200: shown}
    for code, what in refusals.items():
        responses[code] = {"description": what}
    return responses


def json_content(example: Any, variations: Variations = NO_VARIATIONS) -> dict[str, Any]:
    """Returns the `content` of answers that look like `example`."""
    return {"application/json": {"schema": shape_of(example, variations), "example": example}}

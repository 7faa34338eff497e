"""JSON schemas of answers, made of the examples that the OpenAPI document shows of them. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass(frozen=True)
class Variations:
    """In what answers differ from their example: keys of objects, however deep they are."""

    by_name: Collection[str] = ()
    """Their objects have names, as of nodes, for keys, and values that look alike."""
    nullable: Collection[str] = ()
    """Their values may be null, although that of the example is not."""
    optional: Collection[str] = ()
    """Not every answer has them."""
    of_several_types: Collection[str] = ()
    """Their values may be anything, whatever that of the example is."""


NO_VARIATIONS = Variations()


def shape_of(example: Any, variations: Variations = NO_VARIATIONS) -> dict[str, Any]:
    """Returns the schema of whatever has the keys of `example` and values of the same types. A null
    of the example stands for any value."""
    if isinstance(example, dict):
        return _shape_of_object(example, variations)
    if isinstance(example, list):
        return {"type": "array", "items": _any_of([shape_of(one, variations) for one in example])}
    return {"type": TYPES[type(example)]} if example is not None else {}


def _shape_of_object(example: dict[str, Any], variations: Variations) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: _shape_at(key, example[key], variations) for key in example},
        "required": [key for key in example if key not in variations.optional],
    }


def _shape_at(key: str, value: Any, variations: Variations) -> dict[str, Any]:
    if key in variations.of_several_types:
        return {}
    if key in variations.by_name and isinstance(value, dict):
        each = _any_of([shape_of(one, variations) for one in value.values()])
        shape: dict[str, Any] = {"type": "object", "additionalProperties": each}
    else:
        shape = shape_of(value, variations)
    return {"anyOf": [shape, {"type": "null"}]} if key in variations.nullable else shape


def _any_of(shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the schema of what has any of the shapes; of anything if there are none."""
    different = [shape for i, shape in enumerate(shapes) if shape not in shapes[:i]]
    if len(different) > 1:
        return {"anyOf": different}
    return different[0] if different else {}

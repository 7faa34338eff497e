"""What a tool's schema says of each argument apart from the others. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

ANNOTATIONS = {"title", "description", "default", "examples"}
"""Keys that rule nothing out."""
DEFINITIONS = ("$defs", "definitions")
SIMPLE_KEYS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "title",
    "description",
    "$schema",
    *DEFINITIONS,
}
"""A schema with these alone has nothing to say of several arguments together."""
DEFINITION = re.compile(r"#/(\$defs|definitions)/([^/]+)")
KEYWORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
OTHER_REFERENCE = re.compile(r'"\$ref": "(?!#/(?:\$defs|definitions)/)')


def members_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the schema of each argument, by itself. A reference to a definition is followed once,
    as libraries write an enum."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {key: _followed(one, schema) for key, one in properties.items()}


def _followed(one: Any, schema: Mapping[str, Any]) -> Any:
    reference = one.get("$ref") if isinstance(one, dict) else None
    match = DEFINITION.fullmatch(reference) if isinstance(reference, str) else None
    definitions = schema.get(match[1]) if match else None
    if not match or not isinstance(definitions, Mapping):
        return one
    target = definitions.get(match[2])
    if not isinstance(target, dict) or not one.keys() - {"$ref"} <= ANNOTATIONS:
        return one
    return target


def simple_members(schema: Mapping[str, Any]) -> Mapping[str, tuple[Any, bool]] | None:
    """Returns the schema of each argument, and whether it is required; None if they cannot be told
    apart so. A client may give anything as a schema."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    is_simple = (
        schema.keys() <= SIMPLE_KEYS
        and isinstance(properties, dict)
        and isinstance(required, list)
        and all(isinstance(key, str) and key in properties for key in required)
        and all(KEYWORD.fullmatch(key) for key in properties)
        and not OTHER_REFERENCE.search(json.dumps(schema))
    )
    if not is_simple:
        return None
    definitions = {name: schema[name] for name in DEFINITIONS if name in schema}
    return {
        key: ({**definitions, **one} if isinstance(one, dict) else one, key in required)
        for key, one in members_of(schema).items()
    }

"""The grammar of arguments in Python's syntax. Their values are JSON, which `read_value` takes too.
Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from coordinator.conversation import formats
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool

KEYWORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
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
"""A schema with these alone says of each argument apart from the others what it may be."""
OTHER_REFERENCE = re.compile(r'"\$ref": "(?!#/(?:\$defs|definitions)/)')
MAX_OPTIONAL = 12
"""Arguments of which none has to come first: each of them makes a rule for each behind it."""


def arguments_format(tool: Tool, is_free: bool) -> TextFormat:
    """Returns what may stand between the brackets of a call. `is_free`: any keywords."""
    if is_free:
        keyword = formats.sequence(formats.regex(rf"{KEYWORD.pattern}="), formats.json_value({}))
        keywords = formats.separated([formats.tag("", keyword, "")], ", ", True)
        return formats.any_of([formats.text(""), keywords])
    schema = formats.schema_of(tool)
    if not _is_simple(schema):
        return _as_object(schema)
    properties, needed = schema.get("properties", {}), schema.get("required", [])
    keywords = {key: _keyword(key, properties[key], schema) for key in properties}
    required = [keywords[key] for key in properties if key in needed]
    optional = [keywords[key] for key in properties if key not in needed]
    if required:
        return _begun(required, optional)
    if len(optional) > MAX_OPTIONAL:
        return _as_object(schema)
    firsts = [_begun([first], optional[i + 1 :]) for i, first in enumerate(optional)]
    return formats.any_of([formats.text(""), *firsts])


def _as_object(schema: Any) -> TextFormat:
    return formats.sequence(formats.text("**"), formats.json_value(schema))


def _is_simple(schema: Any) -> bool:
    """Returns whether keywords can say all that the schema asks. A client may give anything."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    return (
        schema.keys() <= SIMPLE_KEYS
        and isinstance(properties, dict)
        and isinstance(required, list)
        and all(isinstance(key, str) and key in properties for key in required)
        and all(KEYWORD.fullmatch(key) for key in properties)
        and not OTHER_REFERENCE.search(json.dumps(schema))
    )


def _begun(first: Sequence[TextFormat], optional: Sequence[TextFormat]) -> TextFormat:
    """All of `first`, and any of `optional` behind them."""
    parts = [first[0]]
    for keyword in first[1:]:
        parts += [formats.text(", "), keyword]
    for keyword in optional:
        more = formats.sequence(formats.text(", "), keyword)
        parts.append(formats.any_of([formats.text(""), more]))
    return formats.sequence(*parts)


def _keyword(key: str, schema: Any, whole: Any) -> TextFormat:
    if isinstance(schema, dict):
        schema = {**{name: whole[name] for name in DEFINITIONS if name in whole}, **schema}
    return formats.sequence(formats.text(f"{key}="), formats.json_value(schema))

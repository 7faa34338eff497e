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
    properties = schema.get("properties", {})
    required = [key for key in properties if key in schema.get("required", [])]
    optional = [key for key in properties if key not in required]
    if not _is_simple(schema, properties) or (not required and len(optional) > MAX_OPTIONAL):
        return formats.sequence(formats.text("**"), formats.json_value(schema))
    keywords = {key: _keyword(key, properties[key], schema) for key in properties}
    if required:
        return _begun([keywords[key] for key in required], [keywords[key] for key in optional])
    firsts = [
        _begun([keywords[first]], [keywords[key] for key in optional[i + 1 :]])
        for i, first in enumerate(optional)
    ]
    return formats.any_of([formats.text(""), *firsts])


def _is_simple(schema: Any, properties: Any) -> bool:
    return (
        schema.keys() <= SIMPLE_KEYS
        and all(KEYWORD.fullmatch(key) for key in properties)
        and set(schema.get("required", ())) <= properties.keys()
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

"""The formats of structural tags that grammars of calls are made of, as
`coordinator/grammars/structural_tags.py` reads them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from coordinator.conversation.message import Tool

TextFormat = dict[str, Any]
AS_TRAINED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How templates write JSON, and so how models learn it. Without free white space, a small model
cannot go on with that for ever."""
ANY_TEXT: TextFormat = {"type": "any_text"}


def text(value: str) -> TextFormat:
    return {"type": "const_string", "value": value}


def quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def regex(pattern: str) -> TextFormat:
    return {"type": "regex", "pattern": pattern}


def sequence(*formats: TextFormat) -> TextFormat:
    return {"type": "sequence", "elements": list(formats)}


def any_of(formats: Sequence[TextFormat]) -> TextFormat:
    return {"type": "or", "elements": list(formats)}


def tag(begin: str, content: TextFormat, end: str) -> TextFormat:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def json_value(schema: Any) -> TextFormat:
    written = {**schema, "x-guidance": AS_TRAINED} if isinstance(schema, dict) else schema
    return {"type": "json_schema", "json_schema": written}


def arguments(tool: Tool, is_free: bool = False) -> TextFormat:
    """Arguments that the tool takes; `is_free`: any object."""
    return json_value({"type": "object"} if is_free else schema_of(tool))


def schema_of(tool: Tool) -> dict[str, Any]:
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {**tool.parameters, "type": "object"}


def separated(tags: Sequence[TextFormat], separator: str, is_parallel: bool) -> TextFormat:
    """One of the tags; several if `is_parallel`."""
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": not is_parallel,
    }


def triggered(triggers: Sequence[str], tags: Sequence[TextFormat], is_parallel: bool) -> TextFormat:
    """Free text in which a tag follows wherever a trigger comes, which is the tag's begin."""
    return {
        "type": "triggered_tags",
        "triggers": list(triggers),
        "tags": list(tags),
        "stop_after_first": not is_parallel,
    }

"""The grammar of arguments in Python's syntax. Their values are JSON, which `read_value` takes too.
Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation import formats
from coordinator.conversation.calls.members import KEYWORD, simple_members
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool

MAX_OPTIONAL = 12
"""Arguments of which none has to come first: each of them makes a rule for each behind it."""


def arguments_format(tool: Tool, is_free: bool) -> TextFormat:
    """Returns what may stand between the brackets of a call. `is_free`: any keywords."""
    if is_free:
        keyword = formats.sequence(formats.regex(rf"{KEYWORD.pattern}="), formats.json_value({}))
        keywords = formats.separated([formats.tag("", keyword, "")], ", ", True)
        return formats.any_of([formats.text(""), keywords])
    schema = formats.schema_of(tool)
    as_object = formats.sequence(formats.text("**"), formats.json_value(schema))
    members = simple_members(schema)
    if members is None:
        return as_object
    required: list[TextFormat] = []
    optional: list[TextFormat] = []
    for key, (one, is_required) in members.items():
        keyword = formats.sequence(formats.text(f"{key}="), formats.json_value(one))
        (required if is_required else optional).append(keyword)
    if required:
        return _begun(required, optional)
    if len(optional) > MAX_OPTIONAL:
        return as_object
    firsts = [_begun([first], optional[i + 1 :]) for i, first in enumerate(optional)]
    return formats.any_of([formats.text(""), *firsts])


def _begun(first: Sequence[TextFormat], optional: Sequence[TextFormat]) -> TextFormat:
    """All of `first`, and any of `optional` behind them."""
    parts = [first[0]]
    for keyword in first[1:]:
        parts += [formats.text(", "), keyword]
    for keyword in optional:
        more = formats.sequence(formats.text(", "), keyword)
        parts.append(formats.any_of([formats.text(""), more]))
    return formats.sequence(*parts)

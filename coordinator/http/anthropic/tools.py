"""The tools of a body in Anthropic's form, and whether the model may call them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.conversation.message import Tool, ToolChoice
from coordinator.http.errors import BadRequest

MAX_TOOLS = 1024
KINDS = (None, "custom")
"""The types of tools that have a schema of their own and are called by the client."""


def tools_of(raw: Sequence[Any]) -> list[Tool]:
    """Returns the tools that `raw`, the value of the key, describes. Raises BadRequest."""
    if len(raw) > MAX_TOOLS:
        raise BadRequest(f"tools has {len(raw)} entries; at most {MAX_TOOLS} go", "tools")
    tools = [_tool(one, f"tools[{i}]") for i, one in enumerate(raw)]
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"tools has two with the name {twice!r}", "tools")
    return tools


def choice_of(raw: Mapping[str, Any] | None, tools: Sequence[Tool]) -> ToolChoice:
    """Returns the choice that `raw`, the value of tool_choice, makes of `tools`. Raises
    BadRequest."""
    if raw is None:
        return ToolChoice()
    kind, is_parallel = raw.get("type"), raw.get("disable_parallel_tool_use") is not True
    if kind == "auto":
        return ToolChoice("auto", is_parallel=is_parallel)
    if kind == "none":
        return ToolChoice("none")
    if kind == "any":
        if not tools:
            raise BadRequest("tool_choice is any, and there are no tools", "tool_choice")
        return ToolChoice("required", is_parallel=is_parallel)
    if kind != "tool":
        raise BadRequest(
            f"tool_choice.type is {kind!r}; it must be auto, any, tool or none", "tool_choice.type"
        )
    name = raw.get("name")
    if all(tool.name != name for tool in tools):
        raise BadRequest(f"tool_choice names {name!r}, which is none of tools", "tool_choice")
    return ToolChoice("named", str(name), is_parallel)


def _tool(raw: Any, where: str) -> Tool:
    if not isinstance(raw, Mapping):
        raise BadRequest(f"{where} must be an object", where)
    if raw.get("type") not in KINDS:
        raise BadRequest(
            f"{where}.type is {raw['type']!r}; only tools with an input_schema, which the client "
            "calls, are supported",
            f"{where}.type",
        )
    name, schema = raw.get("name"), raw.get("input_schema")
    description = raw.get("description") or ""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise BadRequest(f"{where}.name must be a name on one line", f"{where}.name")
    if not isinstance(schema, Mapping):
        raise BadRequest(f"{where}.input_schema must be an object", f"{where}.input_schema")
    if not isinstance(description, str):
        raise BadRequest(f"{where}.description must be a text", f"{where}.description")
    return Tool(name, description, schema, is_strict=raw.get("strict") is True)

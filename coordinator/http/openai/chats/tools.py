"""The tools of a body, and whether the model may, must or must not call them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.conversation.message import Tool, ToolChoice
from coordinator.http.errors import BadRequest

MAX_TOOLS = 1024
WORDS = ("none", "auto", "required")


def tools_of(raw: Sequence[Any] | None) -> list[Tool]:
    """Returns the tools that `raw`, the value of the key, describes. Raises BadRequest."""
    if raw is not None and len(raw) > MAX_TOOLS:
        raise BadRequest(f"tools has {len(raw)} entries; at most {MAX_TOOLS} go", "tools")
    tools = [_tool(one, f"tools[{i}]") for i, one in enumerate(raw or ())]
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"tools has two functions with the name {twice!r}", "tools")
    return tools


def choice_of(
    raw: str | dict[str, Any] | None, is_parallel: bool, tools: Sequence[Tool]
) -> tuple[ToolChoice, Sequence[Tool]]:
    """Returns the choice that `raw`, the value of tool_choice, makes of `tools`, and those of them
    that may be called. Raises BadRequest."""
    if isinstance(raw, dict) and raw.get("type") == "allowed_tools":
        allowed = _object(raw.get("allowed_tools"), "tool_choice.allowed_tools")
        where = "tool_choice.allowed_tools.tools"
        listed = allowed.get("tools") or []
        if not isinstance(listed, list):
            raise BadRequest(f"{where} must be a list of tools", where)
        names = [_name(one, f"{where}[{i}]") for i, one in enumerate(listed)]
        for name in names:
            _require_known(name, tools)
        tools = [tool for tool in tools if tool.name in names]
        raw = allowed.get("mode", "auto")
    if isinstance(raw, dict):
        name = _name(raw, "tool_choice")
        _require_known(name, tools)
        return ToolChoice("named", name, is_parallel), tools
    if raw is not None and raw not in WORDS:
        raise BadRequest(
            f"tool_choice is {raw!r}; it must be none, auto, required, or name a function",
            "tool_choice",
        )
    if raw == "required" and not tools:
        raise BadRequest("tool_choice is required, and there are no tools", "tool_choice")
    if raw == "required":
        return ToolChoice("required", is_parallel=is_parallel), tools
    return ToolChoice("none" if raw == "none" else "auto", is_parallel=is_parallel), tools


def _tool(raw: Any, where: str) -> Tool:
    kind = raw.get("type", "function") if isinstance(raw, dict) else None
    if kind != "function":
        raise BadRequest(f"{where}.type is {kind!r}; only functions are supported", where)
    function = _object(raw.get("function"), f"{where}.function")
    parameters = function.get("parameters")
    if parameters is not None:
        _object(parameters, f"{where}.function.parameters")
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise BadRequest(f"{where}.function.description must be a text", where)
    return Tool(
        name=_name(raw, where),
        description=description,
        parameters=parameters,
        is_strict=function.get("strict") is True,
    )


def _name(raw: Any, where: str) -> str:
    """Returns the name of the function that `raw` is or chooses."""
    function = _object(_object(raw, where).get("function"), f"{where}.function")
    name = function.get("name")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise BadRequest(
            f"{where}.function.name must be a name on one line", f"{where}.function.name"
        )
    return name


def _object(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise BadRequest(f"{where} must be an object", where)
    return raw


def _require_known(name: str, tools: Sequence[Tool]) -> None:
    if all(tool.name != name for tool in tools):
        raise BadRequest(f"tool_choice names {name!r}, which is none of tools", "tool_choice")

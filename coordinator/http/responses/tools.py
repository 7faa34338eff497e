"""The tools of a response, and whether the model may, must or must not call them. Pure.

Tools that OpenAI's servers would run (web_search and others), and those of a form that only
OpenAI's models know (local_shell and others), are not told to the model, which then calls none of
them. The `tools` of the response are those that it was told of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.conversation.message import Tool, ToolChoice
from coordinator.http.errors import BadRequest
from coordinator.http.responses.items import FREE_TEXT

MAX_TOOLS = 1024
KINDS = ("function", "custom")
"""The types of tools that a model is told of."""
WORDS = ("none", "auto", "required")
FREE_ARGUMENTS = {
    "type": "object",
    "properties": {FREE_TEXT: {"type": "string"}},
    "required": [FREE_TEXT],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class OfferedTools:
    """The tools that the model is told of."""

    tools: Sequence[Tool]
    raw: Sequence[Mapping[str, Any]]
    """The same as the client described them."""
    free_names: Collection[str]
    """Those whose argument is a text of any form."""


def tools_of(raw: Sequence[Any]) -> OfferedTools:
    """Returns what `raw`, the value of the key, describes. Raises BadRequest."""
    if len(raw) > MAX_TOOLS:
        raise BadRequest(f"tools has {len(raw)} entries; at most {MAX_TOOLS} go", "tools")
    for i, one in enumerate(raw):
        if not isinstance(one, Mapping) or not isinstance(one.get("type"), str):
            raise BadRequest(f"tools[{i}] must be an object with a type", f"tools[{i}]")
    kept = [(one, f"tools[{i}]") for i, one in enumerate(raw) if one["type"] in KINDS]
    tools = [_tool(one, where) for one, where in kept]
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"tools has two with the name {twice!r}", "tools")
    free = {tool.name for tool, (one, _) in zip(tools, kept, strict=True) if _is_free(one)}
    return OfferedTools(tools, [one for one, _ in kept], free)


def choice_of(
    raw: str | Mapping[str, Any] | None, is_parallel: bool, offered: OfferedTools
) -> tuple[ToolChoice, Sequence[Tool]]:
    """Returns the choice that `raw`, the value of tool_choice, makes of the tools, and those of
    them that may be called. Raises BadRequest."""
    tools = offered.tools
    if isinstance(raw, Mapping) and raw.get("type") == "allowed_tools":
        allowed = raw.get("tools") or []
        if not isinstance(allowed, list):
            raise BadRequest("tool_choice.tools must be a list of tools", "tool_choice.tools")
        names = [one.get("name") for one in allowed if isinstance(one, Mapping)]
        tools = [tool for tool in tools if tool.name in names]
        raw = raw.get("mode", "auto")
    if isinstance(raw, Mapping):
        if raw.get("type") not in KINDS:
            raise BadRequest(
                f"tool_choice.type is {raw.get('type')!r}; the model knows tools of the types "
                f"{' and '.join(KINDS)} only",
                "tool_choice",
            )
        name = raw.get("name")
        if all(tool.name != name for tool in tools):
            raise BadRequest(f"tool_choice names {name!r}, which is none of tools", "tool_choice")
        return ToolChoice("named", str(name), is_parallel), tools
    if raw is not None and raw not in WORDS:
        raise BadRequest(
            f"tool_choice is {raw!r}; it must be none, auto, required, or name a tool",
            "tool_choice",
        )
    if raw == "required":
        if not tools:
            raise BadRequest(
                "tool_choice is required, and there is no tool that the model knows",
                "tool_choice",
            )
        return ToolChoice("required", is_parallel=is_parallel), tools
    return ToolChoice("none" if raw == "none" else "auto", is_parallel=is_parallel), tools


def _tool(raw: Mapping[str, Any], where: str) -> Tool:
    name, description = raw.get("name"), raw.get("description") or ""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise BadRequest(f"{where}.name must be a name on one line", f"{where}.name")
    if not isinstance(description, str):
        raise BadRequest(f"{where}.description must be a text", f"{where}.description")
    if _is_free(raw):
        return Tool(name, _with_grammar(description, raw.get("format")), FREE_ARGUMENTS)
    parameters = raw.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise BadRequest(f"{where}.parameters must be an object", f"{where}.parameters")
    return Tool(name, description, parameters, is_strict=raw.get("strict") is True)


def _is_free(raw: Mapping[str, Any]) -> bool:
    return raw["type"] == "custom"


def _with_grammar(description: str, form: Any) -> str:
    """Returns the description of a custom tool. A grammar that its text is to follow is told to the
    model, and not enforced."""
    definition = form.get("definition") if isinstance(form, Mapping) else None
    if not isinstance(definition, str):
        return description
    syntax = form.get("syntax", "")
    return f"{description}\n\nThe text follows this {syntax} grammar:\n{definition}".strip()

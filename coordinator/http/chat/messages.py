"""Messages as chat templates expect them. Pure.

Clients send content as a text or as parts, and the arguments of calls as JSON in a string; most
templates want a text, and arguments that are objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from coordinator.http.errors import BadRequest

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Parts that are text, with the key under which they have it."""


def normal_messages(
    messages: Sequence[Mapping[str, Any]], wants_parts: bool, has_developer: bool
) -> list[dict[str, Any]]:
    """Returns the messages for a template. `wants_parts`: it reads content that is a list of parts;
    otherwise their texts are joined, a line each. `has_developer`: it knows the role "developer",
    which is "system" for all others. Raises BadRequest, which names the message."""
    if not messages:
        raise BadRequest("messages is empty; a chat has at least one message", "messages")
    return [
        _normal(one, f"messages[{i}]", wants_parts, has_developer) for i, one in _each(messages)
    ]


def _each(messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise _wrong(f"messages[{i}]", "must be an object with role and content")
    return list(enumerate(messages))


def _normal(
    message: Mapping[str, Any], where: str, wants_parts: bool, has_developer: bool
) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise _wrong(f"{where}.role", 'must be a text, such as "user"')
    if message.get("function_call"):
        raise _wrong(f"{where}.function_call", "is not supported; use tool_calls")
    normal = dict(message)
    if role == "developer" and not has_developer:
        normal["role"] = "system"
    content = message.get("content")
    if isinstance(content, list):
        texts = [_text_of(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
        parts = [{"type": "text", "text": text} for text in texts]
        normal["content"] = parts if wants_parts else "\n".join(texts)
    elif not isinstance(content, str | None):
        raise _wrong(f"{where}.content", "must be a text or a list of parts")
    if message.get("tool_calls"):
        normal["tool_calls"] = _calls(message["tool_calls"], f"{where}.tool_calls")
    else:
        normal.pop("tool_calls", None)  # templates ask whether the key is there
    return normal


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise _wrong(where, f"is of type {kind!r}; only parts of text are supported")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise _wrong(f"{where}.{TEXT_PARTS[kind]}", "must be a text")
    return text


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise _wrong(where, "must be a list")
    normal = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _wrong(f"{where}[{i}].function", "must be an object with name and arguments")
        arguments = _arguments(function.get("arguments"))
        normal.append(dict(call) | {"function": dict(function) | {"arguments": arguments}})
    return normal


def _arguments(arguments: Any) -> Any:
    """Returns the arguments of a call as an object. What a model wrote that is no JSON stays the
    text that it is: the chat goes on."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return msgspec.json.decode(arguments) if arguments.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        return arguments


def _wrong(where: str, what: str) -> BadRequest:
    return BadRequest(f"{where} {what}", where)

"""From Anthropic's messages to those that chat templates read, which have OpenAI's form. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.http.errors import BadRequest

ID_PREFIX = "toolu_"
"""Every id of a call has it in this dialect; templates get the id without it."""
BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}
"""The types of blocks that messages of a role may have."""

Chat = list[dict[str, Any]]


def chat_of(system: str | Sequence[Any], messages: Sequence[Mapping[str, Any]]) -> Chat:
    """Returns the whole chat. Messages of users that follow each other are one, as many templates
    want the roles to alternate. Raises BadRequest, which names the block."""
    chat: Chat = []
    if system:
        parts = [_text(block, where) for block, where in _blocks(system, "system", "system")]
        chat.append({"role": "system", "content": parts})
    for i, message in enumerate(messages):
        role, where = message.get("role"), f"messages[{i}]"
        if not isinstance(role, str) or role not in BLOCKS:
            raise _wrong(f"{where}.role", f"is {role!r}; it must be user, assistant or system")
        blocks = _blocks(message.get("content"), f"{where}.content", role)
        if role == "assistant":
            chat.append(_assistant(blocks))
        elif role == "user":
            _add_user(chat, blocks)
        else:
            _add_reminder(chat, blocks)
    return [_simple(message) for message in chat]


def _blocks(content: Any, where: str, role: str) -> list[tuple[Mapping[str, Any], str]]:
    """Returns the blocks of a content with their places in the body."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, where)]
    if not isinstance(content, list):
        raise _wrong(where, "must be a text or a list of blocks")
    placed = [(block, f"{where}[{i}]") for i, block in enumerate(content)]
    for block, place in placed:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind not in BLOCKS[role]:
            raise _wrong(place, f"is of type {kind!r}; it must be {' or '.join(BLOCKS[role])}")
    return placed


def _assistant(blocks: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, Any]:
    thoughts: list[str] = []
    texts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block, where in blocks:
        if block["type"] == "text":
            texts.append(_text(block, where))
        elif block["type"] == "thinking":
            thoughts.append(_string(block, "thinking", where))
        elif block["type"] == "tool_use":
            calls.append(_call(block, where))
    message: dict[str, Any] = {"role": "assistant", "content": texts}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, Mapping):
        raise _wrong(f"{where}.input", "must be an object")
    function = {"name": _string(block, "name", where), "arguments": dict(arguments)}
    call_id = _string(block, "id", where).removeprefix(ID_PREFIX)
    return {"id": call_id, "type": "function", "function": function}


def _add_user(chat: Chat, blocks: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    for block, where in blocks:
        if block["type"] == "tool_result":
            chat.append(_tool_result(block, where))
        else:
            _user_parts(chat).append(_text(block, where))


def _add_reminder(chat: Chat, blocks: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    """Adds what the system says amid a chat, which few templates know, to what the user says."""
    for block, where in blocks:
        text = _string(block, "text", where)
        reminder = f"<system-reminder>\n{text}\n</system-reminder>"
        _user_parts(chat).append({"type": "text", "text": reminder})


def _user_parts(chat: Chat) -> list[Any]:
    """Returns the parts of the user's message that ends the chat; begins one if none does."""
    if not chat or chat[-1]["role"] != "user":
        chat.append({"role": "user", "content": []})
    parts: list[Any] = chat[-1]["content"]
    return parts


def _tool_result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content") or ""
    blocks = _blocks(content, f"{where}.content", "system")
    parts = [_text(part, place) for part, place in blocks]
    if block.get("is_error") is True:
        parts.insert(0, {"type": "text", "text": "Error:"})
    call_id = _string(block, "tool_use_id", where).removeprefix(ID_PREFIX)
    return {"role": "tool", "tool_call_id": call_id, "content": parts}


def _simple(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a message with a text in place of the one part that it has, or of none."""
    parts = message["content"]
    if len(parts) > 1:
        return message
    return message | {"content": parts[0]["text"] if parts else ""}


def _text(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {"type": "text", "text": _string(block, "text", where)}


def _string(block: Mapping[str, Any], key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{key}", "must be a text")
    return value


def _wrong(where: str, what: str) -> BadRequest:
    return BadRequest(f"{where} {what}", where)

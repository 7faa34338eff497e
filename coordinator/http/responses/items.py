"""From the input of a response to messages that chat templates read, in the form of chats. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from coordinator.http.errors import BadRequest

SYSTEM_ROLES = ("system", "developer")
ROLES = ("user", "assistant", *SYSTEM_ROLES)
TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")
KINDS = (
    "message",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "reasoning",
)
"""The types of items that a model of text can be told of."""
FREE_TEXT = "input"
"""The one argument of a custom tool: a text of any form."""

Chat = list[dict[str, Any]]


def chat_of(instructions: str, given: str | Sequence[Any]) -> Chat:
    """Returns the whole chat. Items that a model wrote one after another are one message of it, and
    so is all that the system says at first. Raises BadRequest, which names the item."""
    chat: Chat = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*chat, {"role": "user", "content": given}]
    for i, item in enumerate(given):
        _add(chat, item, f"input[{i}]")
    return chat


def packed(thought: str) -> str:
    """Returns a thought as clients keep it for us, in `encrypted_content`. It is no secret."""
    return base64.b64encode(thought.encode()).decode()


def unpacked(content: str) -> str:
    """Returns the thought that `packed` has packed; "" for what another server has."""
    try:
        return base64.b64decode(content, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _add(chat: Chat, item: Any, where: str) -> None:
    if not isinstance(item, Mapping):
        raise _wrong(where, "must be an object")
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "item_reference":
        raise _wrong(where, "refers to an item, and nothing is stored: send the item itself")
    if kind not in KINDS:
        raise _wrong(where, f"is of type {kind!r}; it must be one of {', '.join(KINDS)}")
    if kind == "message":
        _add_message(chat, item, where)
    elif kind == "reasoning":
        thought = _thought(item, where)
        if thought:
            _model_turn(chat, is_behind_calls=False)["reasoning_content"] = thought
    elif kind in ("function_call", "custom_tool_call"):
        turn = _model_turn(chat, is_behind_calls=True)
        turn.setdefault("tool_calls", []).append(_call(item, kind, where))
    else:
        content = _text(item.get("output"), f"{where}.output")
        call_id = _string(item, "call_id", where)
        chat.append({"role": "tool", "tool_call_id": call_id, "content": content})


def _add_message(chat: Chat, item: Mapping[str, Any], where: str) -> None:
    role = item.get("role")
    if role not in ROLES:
        raise _wrong(f"{where}.role", f"is {role!r}; it must be one of {', '.join(ROLES)}")
    text = _text(item.get("content"), f"{where}.content")
    if role == "assistant":
        turn = _model_turn(chat, is_behind_calls=False)
        turn["content"] = f"{turn['content']}\n{text}" if turn["content"] else text
    elif role in SYSTEM_ROLES and len(chat) == 1 and chat[0]["role"] in SYSTEM_ROLES:
        chat[0]["content"] += f"\n\n{text}"
    else:
        chat.append({"role": role, "content": text})


def _model_turn(chat: Chat, is_behind_calls: bool) -> dict[str, Any]:
    """Returns the message of the model that ends the chat; begins one if none does, or if it has
    calls and what comes does not stand behind calls."""
    last = chat[-1] if chat else None
    has_ended = last is None or last["role"] != "assistant"
    if has_ended or ("tool_calls" in chat[-1] and not is_behind_calls):
        chat.append({"role": "assistant", "content": ""})
    return chat[-1]


def _thought(item: Mapping[str, Any], where: str) -> str:
    """Returns the text of a thought that is sent back: itself, or packed, or a summary of it."""
    if content := item.get("content"):
        return _text(content, f"{where}.content")
    packed_thought = item.get("encrypted_content")
    thought = unpacked(packed_thought) if isinstance(packed_thought, str) else ""
    return thought or _text(item.get("summary") or "", f"{where}.summary")


def _call(item: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    if kind == "custom_tool_call":
        arguments = msgspec.json.encode({FREE_TEXT: _string(item, "input", where)}).decode()
    else:
        arguments = _string(item, "arguments", where)
    function = {"name": _string(item, "name", where), "arguments": arguments}
    return {"id": _string(item, "call_id", where), "type": "function", "function": function}


def _text(content: Any, where: str) -> str:
    """Returns the text of a content: a text, or parts of text, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, "must be a text or a list of parts")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in TEXT_PARTS:
            raise _wrong(f"{where}[{i}]", f"is of type {kind!r}; only parts of text are supported")
        texts.append(_string(part, "refusal" if kind == "refusal" else "text", f"{where}[{i}]"))
    return "\n".join(texts)


def _string(item: Mapping[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{key}", "must be a text")
    return value


def _wrong(where: str, what: str) -> BadRequest:
    return BadRequest(f"{where} {what}", where)

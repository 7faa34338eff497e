"""The one object of a message that is no stream, and what its events share with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from coordinator.conversation.blocks import MessageBlock, blocks_of
from coordinator.http.anthropic.content import ID_PREFIX
from coordinator.http.chat.answer import ChatInProgress


@dataclass(frozen=True)
class MessageHead:
    """What the message and its first event have in common."""

    id: str
    model: str
    max_tokens: int
    """How long the client lets the answer be."""


def message_object(head: MessageHead, content: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a message whose end is not known yet."""
    return {
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
    }


def whole_message(head: MessageHead, one: ChatInProgress) -> dict[str, Any]:
    """Returns the message of an answer that has ended with success and is settled, none of whose
    parts were taken."""
    content = [block_object(one, block) for block in blocks_of(one.take())]
    return message_object(head, content) | stop_of(head, one) | {"usage": usage_of(one)}


def block_object(one: ChatInProgress, block: MessageBlock) -> dict[str, Any]:
    """Returns a block that is complete, as this dialect writes it."""
    if block.kind == "thought":
        return {"type": "thinking", "thinking": block.text, "signature": signature_of(one)}
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    arguments = msgspec.json.decode(block.text) if block.text else {}
    return {
        "type": "tool_use",
        "id": call_id(one, block),
        "name": block.name,
        "input": arguments,
    }


def call_id(one: ChatInProgress, block: MessageBlock) -> str:
    """Returns the id of a call, which no other call of the chat has."""
    return ID_PREFIX + one.call_id(block.call_index).removeprefix("call_")


def signature_of(one: ChatInProgress) -> str:
    """Returns what stands where Anthropic signs thoughts: clients send back those that have
    something there, and nothing checks it."""
    return one.answer.request_id


def stop_of(head: MessageHead, one: ChatInProgress) -> dict[str, Any]:
    """Returns why an answer has ended."""
    reason, sequence = "end_turn", None
    finish = one.answer.finish_reason
    if one.finish == "tool_calls":
        reason = "tool_use"
    elif one.finish == "length":
        is_cut = one.answer.request.max_new_tokens < head.max_tokens
        reason = "model_context_window_exceeded" if is_cut else "max_tokens"
    elif one.finish == "stop" and finish is not None and isinstance(finish.matched, str):
        reason, sequence = "stop_sequence", finish.matched
    return {"stop_reason": reason, "stop_sequence": sequence}


def usage_of(one: ChatInProgress) -> dict[str, Any]:
    """Returns what the answer took until now. Tokens that were read from caches are no
    input_tokens."""
    usage = one.usage
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }

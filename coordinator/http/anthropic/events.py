"""`MessageEvents`: the events of a message's stream in Anthropic's form and order.

A stream has an event for nearly every token, so what such events have in common is encoded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from coordinator.conversation.blocks import (
    BlockBegun,
    BlockEvent,
    BlockGrew,
    BlockReader,
    MessageBlock,
)
from coordinator.http.anthropic.message import (
    MessageHead,
    call_id,
    message_object,
    signature_of,
    stop_of,
    usage_of,
)
from coordinator.http.chat.answer import ChatInProgress

DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"%b","%b":%b}}\n\n'
)
DELTAS = {
    "text": (b"text_delta", b"text"),
    "thought": (b"thinking_delta", b"thinking"),
    "call": (b"input_json_delta", b"partial_json"),
}
"""The type of the events that a kind of block grows by, and their key for what is new."""
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessageEvents:
    """Makes the events of one answer."""

    def __init__(self, head: MessageHead, one: ChatInProgress) -> None:
        self._head = head
        self._one = one
        self._reader = BlockReader()
        self._has_begun = False

    def next(self) -> bytes:
        """Returns the events of what is new; b"" if there is nothing to say. The last ones end the
        message."""
        deltas = self._one.take()
        events = [] if self._has_begun else [self._start()]
        self._has_begun = True
        for event in self._reader.take(deltas):
            events += self._of_block(event)
        if self._one.finish is not None:
            for event in self._reader.finish():
                events += self._of_block(event)
            events += self._end()
        return b"".join(events)

    def _start(self) -> bytes:
        message = message_object(self._head, []) | {"usage": usage_of(self._one)}
        return _event({"type": "message_start", "message": message})

    def _of_block(self, event: BlockEvent) -> Iterator[bytes]:
        block = event.block
        if isinstance(event, BlockGrew):
            yield _delta(block, event.text)
        elif isinstance(event, BlockBegun):
            fields = {"index": block.index, "content_block": self._begun(block)}
            yield _event({"type": "content_block_start", **fields})
            if block.index == 0:
                yield PING
            if block.kind == "call":
                yield _delta(block, "")
        else:
            if block.kind == "thought":
                delta = {"type": "signature_delta", "signature": signature_of(self._one)}
                fields = {"index": block.index, "delta": delta}
                yield _event({"type": "content_block_delta", **fields})
            yield _event({"type": "content_block_stop", "index": block.index})

    def _begun(self, block: MessageBlock) -> dict[str, Any]:
        if block.kind == "text":
            return {"type": "text", "text": ""}
        if block.kind == "thought":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {
            "type": "tool_use",
            "id": call_id(self._one, block),
            "name": block.name,
            "input": {},
        }

    def _end(self) -> Iterator[bytes]:
        stop = stop_of(self._head, self._one)
        yield _event({"type": "message_delta", "delta": stop, "usage": usage_of(self._one)})
        yield _event({"type": "message_stop"})


def _delta(block: MessageBlock, text: str) -> bytes:
    return DELTA % (block.index, *DELTAS[block.kind], msgspec.json.encode(text))


def _event(data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), msgspec.json.encode(data))

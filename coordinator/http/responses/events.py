"""`ResponseEvents`: the events of a response's stream in OpenAI's form and order.

A stream has an event for nearly every token, so what such events have in common is encoded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from coordinator.answers.answer import AnswerError
from coordinator.conversation.blocks import (
    BlockBegun,
    BlockEvent,
    BlockGrew,
    BlockReader,
    MessageBlock,
)
from coordinator.http.responses.response import (
    Item,
    ResponseWriter,
    free_text,
    reasoning_part,
    text_part,
)

PART_OF = {"text": text_part, "thought": reasoning_part}
"""What the item of a block has as its one part; calls have none."""
NAMES = {
    "text": "response.output_text",
    "thought": "response.reasoning_text",
    "call": "response.function_call_arguments",
}
FREE_NAME = "response.custom_tool_call_input"
LAST = {"incomplete": "response.incomplete", "cancelled": "response.incomplete"}
"""The last event by the status of the response, if it was not completed."""


class ResponseEvents:
    """Makes the events of one answer."""

    def __init__(self, writer: ResponseWriter) -> None:
        self._writer = writer
        self._one = writer.one
        self._reader = BlockReader()
        self._output: list[Item] = []
        """The items that are complete."""
        self._num_events = 0
        self._delta_begin = b""
        """What all deltas of the present block have in common, up to their number."""

    def first(self) -> bytes:
        """Returns the events that come before anything of the answer."""
        response = {"response": self._writer.begun()}
        return self._event("response.created", response) + self._event(
            "response.in_progress", response
        )

    def next(self) -> bytes:
        """Returns the events of what is new; b"" if there is nothing to say. The last one has the
        whole response."""
        events: list[bytes] = []
        for event in self._reader.take(self._one.take()):
            events += self._of_block(event)
        if self._one.finish is not None:
            for event in self._reader.finish():
                events += self._of_block(event)
            response = self._writer.final(self._output)
            last = LAST.get(response["status"], "response.completed")
            events.append(self._event(last, {"response": response}))
        return b"".join(events)

    def failure(self, error: AnswerError) -> bytes:
        """Returns the last event of an answer that has ended without success."""
        response = self._writer.failed(error, self._output)
        return self._event("response.failed", {"response": response})

    def _of_block(self, event: BlockEvent) -> Iterator[bytes]:
        if isinstance(event, BlockGrew):
            if not self._writer.is_free(event.block):
                yield self._delta(event.text)
        elif isinstance(event, BlockBegun):
            yield from self._begin(event.block)
        else:
            yield from self._end(event.block)

    def _begin(self, block: MessageBlock) -> Iterator[bytes]:
        item = self._writer.begun_item(block)
        yield self._event("response.output_item.added", {"output_index": block.index, "item": item})
        if block.kind in PART_OF:
            fields = self._place(block) | {"part": PART_OF[block.kind]("")}
            yield self._event("response.content_part.added", fields)
        kind = self._name(block) + ".delta"
        common = msgspec.json.encode({"type": kind, **self._place(block)})[:-1]
        self._delta_begin = b"event: %b\ndata: %b" % (kind.encode(), common)
        if block.kind == "text":
            self._delta_begin += b',"logprobs":[]'

    def _delta(self, text: str) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        form = b'%b,"sequence_number":%d,"delta":%b}\n\n'
        return form % (self._delta_begin, number, msgspec.json.encode(text))

    def _end(self, block: MessageBlock) -> Iterator[bytes]:
        name, place, text = self._name(block), self._place(block), block.text
        if block.kind in PART_OF:
            more: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
            yield self._event(f"{name}.done", place | {"text": text} | more)
            fields = place | {"part": PART_OF[block.kind](text)}
            yield self._event("response.content_part.done", fields)
        elif self._writer.is_free(block):
            yield self._delta(free_text(block))
            yield self._event(f"{name}.done", place | {"input": free_text(block)})
        else:
            fields = place | {"name": block.name, "arguments": text or "{}"}
            yield self._event(f"{name}.done", fields)
        item = self._writer.item(block)
        self._output.append(item)
        yield self._event("response.output_item.done", {"output_index": block.index, "item": item})

    def _name(self, block: MessageBlock) -> str:
        return FREE_NAME if self._writer.is_free(block) else NAMES[block.kind]

    def _place(self, block: MessageBlock) -> dict[str, Any]:
        """Returns where in the output a block is, as events say it."""
        place = {"item_id": self._writer.item_id(block), "output_index": block.index}
        return place | {"content_index": 0} if block.kind in PART_OF else place

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        data = msgspec.json.encode({"type": kind, "sequence_number": number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

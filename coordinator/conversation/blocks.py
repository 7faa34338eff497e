"""The blocks that a message is made of: thoughts, texts and calls, one after another. Pure.

Dialects for agents show a message as a list of such blocks, and a stream tells where each begins
and ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from coordinator.conversation.message import (
    MessageDelta,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallBegun,
    ToolCallBroken,
)

BlockKind = Literal["thought", "text", "call"]


@dataclass(frozen=True)
class MessageBlock:
    """A part of a message that is of one kind."""

    index: int
    """Counts the blocks of the message from 0."""
    kind: BlockKind
    name: str = ""
    """The tool that a call is of."""
    call_index: int = 0
    """Counts the calls of the message from 0."""
    text: str = ""
    """A thought, a text, or the arguments of a call, as far as they came."""
    is_broken: bool = False
    """It is a call that will never be whole."""


@dataclass(frozen=True)
class BlockBegun:
    """The next block of the message has begun; it has no text yet."""

    block: MessageBlock


@dataclass(frozen=True)
class BlockGrew:
    """There is more of the text of the block that has begun."""

    block: MessageBlock
    """As it began."""
    text: str


@dataclass(frozen=True)
class BlockEnded:
    """The block is complete. The next one begins behind it, or the message has ended."""

    block: MessageBlock


BlockEvent = BlockBegun | BlockGrew | BlockEnded


class BlockReader:
    """Turns the parts of one message, as they come, into events of its blocks."""

    def __init__(self) -> None:
        self._block: MessageBlock | None = None
        """The one that has begun and not ended, without its text."""
        self._pieces: list[str] = []
        self._num_blocks = 0

    def take(self, deltas: Sequence[MessageDelta]) -> Iterator[BlockEvent]:
        """Returns what the parts, which follow those before, make of the message."""
        for delta in deltas:
            if isinstance(delta, TextDelta):
                yield from self._grow("text", delta.text)
            elif isinstance(delta, ReasoningDelta):
                yield from self._grow("thought", delta.text)
            elif isinstance(delta, ToolArgumentsDelta):
                yield from self._add(delta.text)
            elif isinstance(delta, ToolCallBegun):
                yield from self._begin("call", delta.name, delta.index)
            else:
                yield from self.finish(is_broken=True)

    def finish(self, is_broken: bool = False) -> Iterator[BlockEvent]:
        """Returns the end of the last block, if one has begun."""
        block, self._block = self._block, None
        if block is not None:
            text, self._pieces = "".join(self._pieces), []
            yield BlockEnded(
                MessageBlock(block.index, block.kind, block.name, block.call_index, text, is_broken)
            )

    def _grow(self, kind: BlockKind, text: str) -> Iterator[BlockEvent]:
        if self._block is None or self._block.kind != kind:
            yield from self._begin(kind)
        yield from self._add(text)

    def _begin(self, kind: BlockKind, name: str = "", call_index: int = 0) -> Iterator[BlockEvent]:
        yield from self.finish()
        self._block = MessageBlock(self._num_blocks, kind, name, call_index)
        self._num_blocks += 1
        yield BlockBegun(self._block)

    def _add(self, text: str) -> Iterator[BlockEvent]:
        assert self._block is not None, "a part belongs to no block"
        self._pieces.append(text)
        yield BlockGrew(self._block, text)


def blocks_of(deltas: Sequence[MessageDelta]) -> list[MessageBlock]:
    """Returns the blocks of the whole message that `deltas`, all of them, are the parts of. A call
    that broke is text, as the model wrote it."""
    whole: list[MessageDelta] = []
    for delta in deltas:
        if isinstance(delta, ToolCallBroken):
            while not isinstance(whole.pop(), ToolCallBegun):
                pass
            whole.append(TextDelta(delta.text))
        else:
            whole.append(delta)
    reader = BlockReader()
    events = [*reader.take(whole), *reader.finish()]
    return [event.block for event in events if isinstance(event, BlockEnded)]

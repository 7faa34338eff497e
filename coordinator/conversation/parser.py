"""`AnswerParser`: takes one answer apart, its thought and then its calls. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation.calls.format import CallFormat
from coordinator.conversation.message import (
    MessageDelta,
    ReasoningDelta,
    TextDelta,
    Thinking,
    Tool,
    ToolCallBroken,
)
from coordinator.conversation.tape import Reading, Tape
from coordinator.conversation.thoughts import ThoughtFormat

SPACES = " \t\r\n"


class AnswerParser:
    """A MessageParser."""

    def __init__(
        self,
        calls: CallFormat,
        tools: Sequence[Tool],
        thought: ThoughtFormat | None,
        thinking: Thinking,
    ) -> None:
        self._tape = Tape(tools)
        self._edges = _Edges()
        self._reading = self._read(calls, thought, thinking)
        next(self._reading)

    def feed(self, text: str) -> Sequence[MessageDelta]:
        self._tape.add(text)
        next(self._reading)
        return self._edges.tidied(self._tape.take_deltas())

    def finish(self) -> Sequence[MessageDelta]:
        self._tape.end()
        for _ in self._reading:
            raise AssertionError("a reader waits for more than there is")
        return [*self._edges.tidied(self._tape.take_deltas()), *self._edges.finish()]

    def _read(
        self, calls: CallFormat, thought: ThoughtFormat | None, thinking: Thinking
    ) -> Reading[None]:
        yield  # until there is some text
        if thought:
            yield from thought.read(self._tape, thinking)
        yield from calls.read(self._tape)


class _Edges:
    """Takes away the white space beside thoughts and calls. Templates write it, so models do; it is
    no part of what they say. An answer without either is left as it is."""

    def __init__(self) -> None:
        self._kind: type[MessageDelta] | None = None
        """That of the last part."""
        self._held = ""
        """White space that stays if more of the same kind follows."""
        self._is_behind = False
        """Nothing but white space has come behind a thought or a call, or in a thought."""
        self._has_text = False
        """Text was told. If more follows behind a call, white space keeps the two apart."""

    def tidied(self, deltas: Sequence[MessageDelta]) -> Sequence[MessageDelta]:
        """Returns the parts without that white space; what may be some is held back."""
        kept: list[MessageDelta] = []
        for delta in deltas:
            if self._kind is not type(delta):
                self._turn_to(type(delta))
            if not isinstance(delta, TextDelta | ReasoningDelta):
                kept.append(delta)
                continue
            text = self._held + delta.text
            if self._is_behind and not self._has_text:
                text = text.lstrip(SPACES)
            shown = text.rstrip(SPACES)
            self._held = text[len(shown) :]
            if shown:
                self._is_behind = False
                self._has_text |= isinstance(delta, TextDelta)
                kept.append(type(delta)(shown))
        return kept

    def finish(self) -> Sequence[MessageDelta]:
        """Returns the white space that ends the answer's text."""
        is_of_text = self._kind is TextDelta and not self._is_behind
        return [TextDelta(self._held)] if self._held and is_of_text else []

    def _turn_to(self, kind: type[MessageDelta]) -> None:
        self._held = ""
        self._is_behind = kind is ReasoningDelta or self._kind not in (None, ToolCallBroken)
        self._kind = kind

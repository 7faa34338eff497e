"""The format of answers in which no calls are looked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation import formats
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool
from coordinator.conversation.tape import Reading, Tape


class NoCalls:
    marks = ()

    def read(self, tape: Tape) -> Reading[None]:
        yield from tape.mark(())

    def grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        return formats.ANY_TEXT

    def free_grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        return formats.ANY_TEXT

"""Mistral's formats: a list of objects behind a mark; since 2025 a name and its arguments. Pure.

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a1b2c3d4e"}]
    [TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Paris"}

https://docs.mistral.ai/cookbooks/concept-deep-dive-tokenization-tool_calling
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.conversation import formats
from coordinator.conversation.calls.arguments import read_arguments, read_call
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool
from coordinator.conversation.tape import Reading, Tape

BEGIN, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


@dataclass(frozen=True)
class Mistral:
    """Reads both formats, and writes one."""

    has_args_mark: bool = False
    """The model has the mark of the newer format, so it writes that."""
    marks: Sequence[str] = (BEGIN, CALL_ID, ARGS)

    def read(self, tape: Tape) -> Reading[None]:
        while (yield from tape.mark((BEGIN,))):
            first = yield from tape.space()
            if first == "[":
                yield from self._read_list(tape)
            elif (yield from read_call(tape) if first == "{" else self._read_named(tape)):
                tape.settle_call()
            else:
                tape.give_up(len(BEGIN))

    def _read_list(self, tape: Tape) -> Reading[None]:
        num_of_mark, separator = len(BEGIN), "["
        while (yield from tape.take(separator)) and (yield from read_call(tape)):
            tape.settle_call()
            num_of_mark, separator = 0, ","
            if (yield from tape.space()) == "]":
                yield from tape.take_end("]")
                return
        tape.give_up(num_of_mark)

    def _read_named(self, tape: Tape) -> Reading[bool]:
        name = yield from tape.word()
        if (yield from tape.take(CALL_ID)):
            yield from tape.word()
        yield from tape.take(ARGS)
        return (yield from read_arguments(tape, name))

    def grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        tags = [self._tag(tool) for tool in tools]
        if self.has_args_mark:
            return formats.separated(tags, "", is_parallel)
        calls = formats.separated(tags, ", ", is_parallel)
        return formats.tag(f"{BEGIN} [", calls, "]")

    def free_grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        tags = [self._tag(tool, is_free=not tool.is_strict) for tool in tools]
        if self.has_args_mark:
            return formats.triggered([BEGIN], tags, is_parallel)
        calls = formats.separated(tags, ", ", is_parallel)
        return formats.triggered([BEGIN], [formats.tag(f"{BEGIN} [", calls, "]")], False)

    def _tag(self, tool: Tool, is_free: bool = False) -> TextFormat:
        arguments = formats.arguments(tool, is_free)
        if self.has_args_mark:
            return formats.tag(f"{BEGIN}{tool.name}{ARGS}", arguments, "")
        head = f'{{"name": {formats.quoted(tool.name)}, "arguments": '
        return formats.tag(head, arguments, "}")

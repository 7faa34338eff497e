"""The JSON format of Llama 3: the answer is an object for each call, behind a mark or alone. Pure.

    {"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "get_time", "parameters": {}}

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation import formats
from coordinator.conversation.calls.arguments import read_call
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool
from coordinator.conversation.tape import Reading, Tape

PYTHON_TAG = "<|python_tag|>"
NO_CALL = r"\s*([^\s{][\s\S]*)?"
"""A text that does not begin as calls do."""


class Llama:
    marks = (PYTHON_TAG,)

    def read(self, tape: Tape) -> Reading[None]:
        if (yield from tape.space()) == "{":
            yield from self._read_calls(tape, 0)
        else:
            tape.give_up(0)
        while (yield from tape.mark(self.marks)):
            yield from self._read_calls(tape, len(PYTHON_TAG))

    def _read_calls(self, tape: Tape, num_of_mark: int) -> Reading[None]:
        while (yield from read_call(tape)):
            tape.settle_call()
            num_of_mark = 0
            if (yield from tape.space()) != ";":
                break
            yield from tape.take(";")
        tape.give_up(num_of_mark)

    def grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        return formats.separated([_tag(tool) for tool in tools], "; ", is_parallel)

    def free_grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        tags = [_tag(tool, is_free=not tool.is_strict) for tool in tools]
        calls = formats.separated(tags, "; ", is_parallel)
        return formats.any_of([calls, formats.regex(NO_CALL)])


def _tag(tool: Tool, is_free: bool = False) -> TextFormat:
    head = f'{{"name": {formats.quoted(tool.name)}, "parameters": '
    return formats.tag(head, formats.arguments(tool, is_free), "}")

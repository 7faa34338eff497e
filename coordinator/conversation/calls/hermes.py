"""The format of Hermes, which Qwen 2.5 and Qwen 3 use: an object between tags for each call. Pure.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation import formats
from coordinator.conversation.calls.arguments import read_call
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool
from coordinator.conversation.tape import Reading, Tape

BEGIN, END = "<tool_call>", "</tool_call>"


class Hermes:
    marks = (BEGIN, END)

    def read(self, tape: Tape) -> Reading[None]:
        while (yield from tape.mark((BEGIN,))):
            if not (yield from read_call(tape)):
                tape.give_up(len(BEGIN))
                continue
            tape.settle_call()
            yield from tape.take_end((END,))

    def grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        return formats.separated([_tag(tool) for tool in tools], "\n", is_parallel)

    def free_grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        tags = [_tag(tool, is_free=not tool.is_strict) for tool in tools]
        return formats.triggered([BEGIN], tags, is_parallel)


def _tag(tool: Tool, is_free: bool = False) -> TextFormat:
    head = f'{BEGIN}\n{{"name": {formats.quoted(tool.name)}, "arguments": '
    return formats.tag(head, formats.arguments(tool, is_free), f"}}\n{END}")

"""DeepSeek's formats: V3 and R1 write arguments in a fence of Markdown, V3.1 without. Pure.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
    ```json
    {"city": "Paris"}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}…

https://huggingface.co/deepseek-ai/DeepSeek-V3.1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.conversation import formats
from coordinator.conversation.calls.arguments import read_arguments
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool
from coordinator.conversation.tape import Reading, Tape

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
FENCE = "```"


@dataclass(frozen=True)
class DeepSeek:
    """Reads both formats, and writes one."""

    has_fence: bool = True
    marks: Sequence[str] = (CALLS_BEGIN, CALL_BEGIN, SEPARATOR, CALL_END, CALLS_END)

    def read(self, tape: Tape) -> Reading[None]:
        while mark := (yield from tape.mark((CALLS_BEGIN, CALL_BEGIN))):
            if mark == CALLS_BEGIN:
                yield from tape.space()
            if mark == CALLS_BEGIN and not (yield from tape.take(CALL_BEGIN)):
                tape.give_up(len(mark))
            elif (yield from self._read_call(tape)):
                tape.settle_call()
                yield from tape.take_end((FENCE, CALL_END, CALLS_END))
            else:
                tape.give_up(len(mark))

    def _read_call(self, tape: Tape) -> Reading[bool]:
        name = yield from tape.word()  # or "function", the kind of the tool
        if not (yield from tape.take(SEPARATOR)):
            return False
        if (yield from tape.space()) != "{":
            name = yield from tape.word()
            yield from tape.space()
            if not (yield from tape.take(f"{FENCE}json")):
                return False
        return (yield from read_arguments(tape, name))

    def grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        return self._calls([self._tag(tool) for tool in tools], is_parallel)

    def free_grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        calls = self._calls([self._tag(tool, not tool.is_strict) for tool in tools], is_parallel)
        return formats.triggered([CALLS_BEGIN], [calls], False)

    def _calls(self, tags: Sequence[TextFormat], is_parallel: bool) -> TextFormat:
        separator = "\n" if self.has_fence else ""
        calls = formats.separated(tags, separator, is_parallel)
        return formats.tag(CALLS_BEGIN, calls, CALLS_END)

    def _tag(self, tool: Tool, is_free: bool = False) -> TextFormat:
        head = f"{tool.name}{SEPARATOR}"
        if self.has_fence:
            head = f"function{SEPARATOR}{tool.name}\n{FENCE}json\n"
        end = f"\n{FENCE}{CALL_END}" if self.has_fence else CALL_END
        return formats.tag(f"{CALL_BEGIN}{head}", formats.arguments(tool, is_free), end)

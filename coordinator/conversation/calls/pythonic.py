"""The pythonic format of Llama 4 and some of Llama 3.2: a list of calls in Python's syntax. Pure.

    [get_weather(city="Paris", days=3), get_time()]

An argument is told when it is whole, as JSON.
https://www.llama.com/docs/model-cards-and-prompt-formats/llama4/
"""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.conversation import formats
from coordinator.conversation.calls.python_arguments import arguments_format
from coordinator.conversation.calls.python_values import read_value
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool
from coordinator.conversation.tape import Reading, Tape

BEGIN, END = "<|python_start|>", "<|python_end|>"


class Pythonic:
    marks = (BEGIN, END)

    def read(self, tape: Tape) -> Reading[None]:
        while mark := (yield from tape.mark(("[", BEGIN))):
            if mark == BEGIN:
                yield from tape.space()
            if mark == "[" or (yield from tape.take("[")):
                yield from self._read_list(tape, len(mark))
            else:
                tape.give_up(len(mark))

    def _read_list(self, tape: Tape, num_of_mark: int) -> Reading[None]:
        while (yield from self._read_call(tape)):
            tape.settle_call()
            num_of_mark = 0
            if (yield from tape.space()) == "]":
                yield from tape.take_end(("]", END))
                return
            if not (yield from tape.take(",")):
                break
            yield from tape.space()
        tape.give_up(num_of_mark)

    def _read_call(self, tape: Tape) -> Reading[bool]:
        name = yield from tape.word()
        if not (yield from tape.take("(")):
            return False
        keys: set[str] = set()
        while (yield from tape.space()) != ")":
            if not keys and (yield from tape.take("**")):
                return (yield from self._read_object(tape, name))
            key = yield from tape.word()
            yield from tape.space()
            if not key or key in keys or not (yield from tape.take("=")):
                return False
            value = yield from read_value(tape)
            if value is None or (not keys and not tape.begin_call(name)):
                return False
            tape.tell_arguments(f"{', ' if keys else '{'}{formats.quoted(key)}: {value}")
            keys.add(key)
            if tape.text[tape.place] != ")" and not (yield from tape.take(",")):
                return False
        yield from tape.take(")")
        if not keys and not tape.begin_call(name):
            return False
        tape.tell_arguments("}" if keys else "{}")
        return True

    def _read_object(self, tape: Tape, name: str) -> Reading[bool]:
        """Reads all arguments as one object, for those that no keywords can give."""
        value = yield from read_value(tape)
        if not value or value[0] != "{" or not (yield from tape.take(")")):
            return False
        if not tape.begin_call(name):
            return False
        tape.tell_arguments(value)
        return True

    def grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        calls = formats.separated([_tag(tool) for tool in tools], ", ", is_parallel)
        return formats.tag("[", calls, "]")

    def free_grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        more = formats.separated([_tag(t, not t.is_strict) for t in tools], ", ", True)
        rest = formats.any_of([formats.text(""), formats.sequence(formats.text(", "), more)])
        lists = []
        for tool in tools:
            call = arguments_format(tool, not tool.is_strict), formats.text(")")
            content = formats.sequence(*call, rest) if is_parallel else formats.sequence(*call)
            lists.append(formats.tag(f"[{tool.name}(", content, "]"))
        return formats.triggered([f"[{tool.name}(" for tool in tools], lists, is_parallel)


def _tag(tool: Tool, is_free: bool = False) -> TextFormat:
    return formats.tag(f"{tool.name}(", arguments_format(tool, is_free), ")")

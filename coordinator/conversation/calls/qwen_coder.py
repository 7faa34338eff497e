"""The format of Qwen3-Coder: a tag for each argument, with its value as plain text or JSON. Pure.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>

What the text of a value means, its schema says: the text itself for strings, else JSON. An argument
is told when it is whole. https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.conversation import formats
from coordinator.conversation.calls.members import (
    ANNOTATIONS,
    DEFINITIONS,
    members_of,
    simple_members,
)
from coordinator.conversation.calls.python_values import as_json
from coordinator.conversation.formats import TextFormat
from coordinator.conversation.message import Tool
from coordinator.conversation.tape import Reading, Tape
from coordinator.grammars.error import GrammarError

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
NOTES = {"type", *ANNOTATIONS, *DEFINITIONS}
"""Keys of a string's schema that leave its text free."""


class QwenCoder:
    marks = (BEGIN, END)

    def read(self, tape: Tape) -> Reading[None]:
        while mark := (yield from tape.mark((BEGIN, FUNCTION))):
            if mark == BEGIN:
                yield from tape.space()
            if mark == BEGIN and not (yield from tape.take(FUNCTION)):
                tape.give_up(len(mark))
            elif (yield from self._read_call(tape)):
                tape.settle_call()
                yield from tape.take_end((END,))
            else:
                tape.give_up(len(mark))

    def _read_call(self, tape: Tape) -> Reading[bool]:
        name = yield from tape.word()
        if not (yield from tape.take(">")) or not tape.begin_call(name):
            return False
        schemas = members_of(tape.tools[name].parameters or {})
        keys: set[str] = set()
        while (yield from tape.space()) and not (yield from tape.take(FUNCTION_END)):
            if not (yield from tape.take(PARAMETER)):
                return False
            key = yield from tape.word()
            if not key or key in keys or not (yield from tape.take(">")):
                return False
            text = yield from tape.text_to(PARAMETER_END)
            if text is None:
                return False
            value = _value(text.removeprefix("\n").removesuffix("\n"), schemas.get(key))
            tape.tell_arguments(f"{', ' if keys else '{'}{formats.quoted(key)}: {value}")
            keys.add(key)
        if not tape.text.endswith(FUNCTION_END, 0, tape.place):
            return False  # the text has ended
        tape.tell_arguments("}" if keys else "{}")
        return True

    def grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        return formats.separated([_tag(tool) for tool in tools], "\n", is_parallel)

    def free_grammar(self, tools: Sequence[Tool], is_parallel: bool) -> TextFormat:
        tags = [_tag(tool, is_free=not tool.is_strict) for tool in tools]
        return formats.triggered([BEGIN], tags, is_parallel)


def _is_string(schema: Any) -> bool:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return kind == "string" or (kind is None and _is_choice_of_strings(schema))


def _is_choice_of_strings(schema: Any) -> bool:
    choices = schema.get("enum") if isinstance(schema, Mapping) else None
    return isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)


def _value(text: str, schema: Any) -> str:
    """Returns the value as JSON."""
    written = None if _is_string(schema) else as_json(text)
    return formats.quoted(text) if written is None else written


def _tag(tool: Tool, is_free: bool = False) -> TextFormat:
    begin = f"{BEGIN}\n{FUNCTION}{tool.name}>\n"
    end = f"{FUNCTION_END}\n{END}"
    if is_free:
        return formats.tag(begin, formats.ANY_TEXT, end)
    members = simple_members(formats.schema_of(tool))
    if members is None:
        raise GrammarError(
            f"the parameters of the tool {tool.name} have rules for several arguments together, "
            "which calls in this model's format cannot be made to follow; leave the rules out, "
            "or let the tool be neither forced nor strict"
        )
    parts = [formats.text("")]
    for key, (schema, is_required) in members.items():
        parameter = _parameter(key, schema)
        parts.append(parameter if is_required else formats.any_of([formats.text(""), parameter]))
    return formats.tag(begin, formats.sequence(*parts), end)


def _parameter(key: str, schema: Any) -> TextFormat:
    begin, end = f"{PARAMETER}{key}>\n", f"\n{PARAMETER_END}\n"
    if not _is_string(schema):
        return formats.tag(begin, formats.json_value(schema), end)
    rules = schema.keys() - NOTES
    if not rules:
        text = formats.tag(begin, formats.ANY_TEXT, PARAMETER_END)
        return formats.sequence(text, formats.text("\n"))
    if rules == {"enum"} and _is_choice_of_strings(schema):
        return formats.tag(begin, formats.any_of([formats.text(c) for c in schema["enum"]]), end)
    raise GrammarError(
        f"the argument {key} is a string with other rules than an enum, which calls in this "
        "model's format cannot be made to follow; leave the rules out, or let the tool be "
        "neither forced nor strict"
    )

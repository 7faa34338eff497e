"""Any calls, written as each family writes them and cut anywhere; and any text at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from coordinator.conversation.calls.python_values import as_json
from coordinator.conversation.choice import form_of
from coordinator.conversation.json_object import JsonObject
from coordinator.conversation.message import (
    Thinking,
    Tool,
    ToolArgumentsDelta,
    ToolCallBegun,
    message_of,
)
from tests.support.coordinator.written_calls import WRITERS, Call, calls_of, cut, streamed

NAMES = ("get_weather", "now", "ns.tool-2")
TOOLS = tuple(Tool(name) for name in NAMES)
MARKS = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[CALL_ID]",
    "[ARGS]",
    "<|python_start|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<think>",
    "</think>",
    "```json",
]
FRAGMENTS = [
    *MARKS,
    *(mark[:-1] for mark in MARKS),
    *NAMES,
    *'[]{}(),:;"\\=\n -7',
    '{"name": "now", "arguments": ',
    '{"name": "now", "parameters": {"a": "b"}}',
    "now(a=1",
    '"name"',
    "null",
    "**",
    "text",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
JSON_VALUES = st.recursive(
    SCALARS.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), JSON_VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3)
PLACES = st.lists(st.integers(0, 1 << 16), max_size=12)
GARBAGE = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)
PARSERS = sorted({parser for parser, _ in WRITERS.values()})


def tools_for(calls: list[Call]) -> list[Tool]:
    """Returns tools whose schemas say which arguments are strings, as some formats do not."""
    schemas: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    for name, arguments in calls:
        for key, value in arguments.items():
            kind = schemas[name].setdefault(key, {"type": "string"} if type(value) is str else {})
            assume(kind == ({"type": "string"} if type(value) is str else {}))
    return [Tool(name, "", {"properties": schemas[name]}) for name in NAMES]


@pytest.mark.parametrize("family", WRITERS)
@given(CALLS, PLACES, st.booleans())
def test_what_was_called_is_read(
    family: str, calls: list[Call], places: list[int], is_thoughtful: bool
) -> None:
    parser, write = WRITERS[family]
    thought = "<think>\nWhich tool?\n</think>\n\n" if is_thoughtful else ""
    form = form_of([], {}, {}, parser, "qwen3")
    pieces = cut(thought + write(calls), places)
    deltas = streamed(form, pieces, tools_for(calls), "free")
    message = message_of(deltas)
    assert calls_of(message) == calls
    assert (message.text, message.reasoning) == ("", "Which tool?" if is_thoughtful else "")
    begun = [delta.index for delta in deltas if isinstance(delta, ToolCallBegun)]
    told = [delta.index for delta in deltas if isinstance(delta, ToolArgumentsDelta)]
    assert begun == list(range(len(calls))) and sorted(told) == told and set(told) == set(begun)


@pytest.mark.parametrize("parser", PARSERS)
@given(GARBAGE, PLACES, st.sampled_from(["off", "free", "open"]))
def test_any_text_is_read_alike_wherever_it_is_cut(
    parser: str, text: str, places: list[int], thinking: Thinking
) -> None:
    form = form_of([], {}, {}, parser, "qwen3")
    whole = streamed(form, [text], TOOLS, thinking)
    message = message_of(whole)
    assert message_of(streamed(form, cut(text, places), TOOLS, thinking)) == message
    calls_of(message)  # valid, each of them
    if not any(isinstance(delta, ToolCallBegun) for delta in whole) and thinking == "off":
        assert message.text == text


@pytest.mark.parametrize("family", WRITERS)
@given(CALLS, st.integers(0, 1 << 16), PLACES)
def test_an_answer_that_is_cut_off_loses_nothing(
    family: str, calls: list[Call], end: int, places: list[int]
) -> None:
    """What was written of a call that is not whole is text, as it stands."""
    parser, write = WRITERS[family]
    text = write(calls)
    text = text[: end % (len(text) + 1)]
    message = message_of(streamed(form_of([], {}, {}, parser), cut(text, places), tools_for(calls)))
    read = calls_of(message)
    assert read == calls[: len(read)]
    if not read:
        assert message.text == text
    assert "".join(text.split()).endswith("".join(message.text.split()))


@given(JSON_VALUES)
def test_a_literal_of_python_is_the_same_in_json(value: Any) -> None:
    for text in (repr(value), json.dumps(value), f" {value!r} "):
        written = as_json(text)
        assert written is not None and json.loads(written) == value


@given(st.text("{}[]()'\"\\,:e1-tru", max_size=12))
def test_any_text_is_a_literal_or_none(text: str) -> None:
    written = as_json(text)
    if written is not None:
        json.loads(written)


@given(
    st.dictionaries(st.text(), JSON_VALUES, max_size=3), PLACES, st.text('{}[],:"1e-', max_size=4)
)
def test_an_object_ends_where_json_says(value: Any, places: list[int], rest: str) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    json_object, read, place = JsonObject(), "", 0
    for piece in cut(text + rest, places):
        read += piece
        place = json_object.scan(read, place)
    assert json_object.is_whole and place == len(text)
    members = {m.key: json.loads(text[m.begin : m.end]) for m in json_object.members}
    assert members == value


@given(st.text('{}[],:"\\1e-. \n', max_size=12).map(lambda text: "{" + text))
def test_what_is_no_object_is_wrong_or_not_whole(text: str) -> None:
    json_object = JsonObject()
    place = json_object.scan(text, 0)
    try:
        json.JSONDecoder().raw_decode(text)
        is_object = True
    except ValueError:
        is_object = False
    assert json_object.is_whole == is_object
    if json_object.is_wrong:
        with pytest.raises(json.JSONDecodeError):
            json.loads(text[: place + 1])

"""Texts as the documentation of each family shows them, and what each parser makes of them."""

from __future__ import annotations

import pytest

from coordinator.conversation.choice import form_of
from coordinator.conversation.message import (
    AssistantMessage,
    MessageDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCall,
    ToolCallBegun,
    ToolCallBroken,
    ToolChoice,
    message_of,
)
from tests.support.coordinator.written_calls import WEATHER, WRITERS, parsed, streamed

PARIS = ToolCall("get_weather", '{"city": "Paris"}')
NOW = ToolCall("now", "{}")
DEEPSEEK_V3 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>\n'
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>"
)
DEEPSEEK_V31 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    '{"city": "Paris"}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
READ: list[tuple[str, str, str, list[ToolCall]]] = [
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "",
        [PARIS, NOW],
    ),
    (
        "hermes",
        'I look it up.\n\n<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}'
        "</tool_call>\n",
        "I look it up.",
        [PARIS],
    ),
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments":  {"city":"P}</tool_call>",\n"days":1}}'
        "\n</tool_call>",
        "",
        [ToolCall("get_weather", '{"city":"P}</tool_call>",\n"days":1}')],
    ),
    ("hermes", '<tool_call>\n{"name": "now"}\n</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": null}\n</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {}}', "", [NOW]),
    ("llama3", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ("llama3", '{"type": "function", "name": "now", "parameters": {}}', "", [NOW]),
    (
        "llama3",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}};'
        '{"name": "now", "parameters": {}}',
        "",
        [PARIS, NOW],
    ),
    ("llama3", 'So: <|python_tag|>{"name": "now", "parameters": {}}', "So:", [NOW]),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "D681PevKs"}, '
        '{"name": "now", "arguments": {}}]',
        "",
        [PARIS, NOW],
    ),
    (
        "mistral",
        '[TOOL_CALLS]get_weather[CALL_ID]D681PevKs[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}',
        "",
        [PARIS, NOW],
    ),
    ("mistral", 'A moment.[TOOL_CALLS]get_weather{"city": "Paris"}', "A moment.", [PARIS]),
    ("pythonic", '[get_weather(city="Paris"), now()]', "", [PARIS, NOW]),
    ("pythonic", "<|python_start|>[get_weather(city='Paris')]<|python_end|>", "", [PARIS]),
    (
        "pythonic",
        "I look. [get_weather(city='It\\'s (a), \"b\"', days=-3)] Good?",
        "I look. Good?",
        [ToolCall("get_weather", '{"city": "It\'s (a), \\"b\\"", "days": -3}')],
    ),
    (
        "pythonic",
        "[get_weather(city=[None, True, {'a': (1, 2.5)}], days=false)]",
        "",
        [ToolCall("get_weather", '{"city": [null, true, {"a": [1, 2.5]}], "days": false}')],
    ),
    ("pythonic", '[get_weather(**{"city": "Paris"})]', "", [PARIS]),
    (
        "qwen3_coder",
        "Now.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n\n</parameter>\n"
        "<parameter=days>\n12\n</parameter>\n<parameter=more>\nTrue\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "Now.",
        [ToolCall("get_weather", '{"city": "12\\n", "days": 12, "more": true}'), NOW],
    ),
    ("qwen3_coder", "<function=now></function>", "", [NOW]),
    ("deepseekv3", DEEPSEEK_V3, "", [PARIS, NOW]),
    ("deepseekv31", "Now:\n" + DEEPSEEK_V31, "Now:", [PARIS, NOW]),
]
IS_TEXT = [
    ("hermes", "a <tool_call> is a tag"),
    ("hermes", '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": []}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": "{}"}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": 7, "arguments": {}}\n</tool_call>'),
    ("hermes", "<tool_call>\n{'name': 'now'}\n</tool_call>"),
    ("hermes", '<tool_call>\n{"name": "now"'),
    ("hermes", "<tool_call>\n{}\n</tool_call>"),
    ("hermes", '{"name": "now", "arguments": {}}'),
    ("llama3", '{"answer": 42, "name": "now", "parameters": {}}'),
    ("llama3", 'It is {"name": "now", "parameters": {}}'),
    ("llama3", '<|python_tag|>brave_search.call(query="now")'),
    ("llama3", " {} "),
    ("mistral", "[TOOL_CALLS] [] and [TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS]unknown[ARGS]{}"),
    ("mistral", '[TOOL_CALLS] [{"name": "unknown", "arguments": {}}]'),
    ("pythonic", "[1] and [now] and [unknown(a=1)] and [get_weather('Paris')]"),
    ("pythonic", "[get_weather(city=Paris)] [get_weather(city=b'')] [get_weather(city={1: 2})]"),
    ("pythonic", "[get_weather(city=(1e999,))] [get_weather(city=1+2)] [get_weather(city=)]"),
    ("pythonic", "[now(**[])] <|python_start|>now()"),
    ("qwen3_coder", "<tool_call>\n<function=unknown>\n</function>\n</tool_call>"),
    ("qwen3_coder", '<tool_call>\n{"name": "now"}\n</tool_call>'),
    ("deepseekv3", "<｜tool▁calls▁begin｜>now<｜tool▁calls▁end｜>"),
    ("deepseekv3", DEEPSEEK_V3.replace("get_weather", "unknown").replace("now", "unknown")),
]
BROKEN = [
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 1'),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 01}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {"a": "line\nline"}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 1}, oh'),
    ("llama3", '{"name": "now", "parameters": {"a": [1, 2}}'),
    ("mistral", '[TOOL_CALLS]now[ARGS]{"a": tru}'),
    ("pythonic", "[get_weather(city='Paris', days=three)]"),
    ("qwen3_coder", "<tool_call>\n<function=now>\n<parameter=a>\n1\n</para"),
    ("qwen3_coder", "<tool_call>\n<function=now>\n<parameter=a>\n1\n</parameter>\n"),
    ("qwen3_coder", "<tool_call>\n<function=now>\nnow\n</function>\n</tool_call>"),
    ("deepseekv31", '<｜tool▁call▁begin｜>now<｜tool▁sep｜>{"a": nul}<｜tool▁call▁end｜>'),
]


@pytest.mark.parametrize(("parser", "text", "rest", "calls"), READ)
def test_calls_are_read(parser: str, text: str, rest: str, calls: list[ToolCall]) -> None:
    message = parsed(form_of([], {}, {}, parser), text)
    assert message == AssistantMessage(rest, "", tuple(calls))


def test_every_format_has_such_texts() -> None:
    parsers = {parser for parser, _ in WRITERS.values()}
    assert {row[0] for row in READ} == parsers == {row[0] for row in IS_TEXT} | {"deepseekv31"}


@pytest.mark.parametrize(("parser", "text"), IS_TEXT)
def test_what_is_no_call_stays_as_it_is(parser: str, text: str) -> None:
    assert parsed(form_of([], {}, {}, parser), text) == AssistantMessage(text, "")


@pytest.mark.parametrize(("parser", "text"), BROKEN)
def test_a_call_that_breaks_off_is_text_in_a_whole_message(parser: str, text: str) -> None:
    form = form_of([], {}, {}, parser)
    assert parsed(form, text) == AssistantMessage(text, "")
    kinds = [type(delta) for delta in streamed(form, [text])]
    assert kinds.count(ToolCallBegun) == kinds.count(ToolCallBroken) == 1


def test_the_call_behind_a_broken_one_has_an_index_of_its_own() -> None:
    text = '<tool_call>{"name": "now", "arguments": {,}}<tool_call>{"name": "now"}</tool_call>'
    deltas = streamed(form_of([], {}, {}, "hermes"), [text])
    assert [d.index for d in deltas if isinstance(d, ToolCallBegun)] == [0, 1]
    whole = '<tool_call>{"name": "now", "arguments": {,}}'
    assert message_of(deltas) == AssistantMessage(whole, "", (NOW,))


def test_a_call_is_told_as_soon_as_its_arguments_begin() -> None:
    parser = form_of([], {}, {}, "hermes").parser([WEATHER], ToolChoice(), "off")
    news: list[list[MessageDelta]] = [
        list(parser.feed(piece))
        for piece in (
            "Well, <tool",
            '_call>\n{"name": "get_weather", "argu',
            'ments": {"city": "Pa',
            'ris", "days": 1',
            "2}}\n</tool_",
            "call>",
        )
    ]
    assert news == [
        [TextDelta("Well,")],
        [],
        [ToolCallBegun(0, "get_weather"), ToolArgumentsDelta(0, '{"city": "Pa')],
        [ToolArgumentsDelta(0, 'ris", "days": ')],  # 1 may become 12
        [ToolArgumentsDelta(0, "12}")],
        [],
    ]
    assert not parser.finish()


def test_pythonic_arguments_are_told_one_by_one() -> None:
    parser = form_of([], {}, {}, "pythonic").parser([WEATHER], ToolChoice(), "off")
    assert not parser.feed("[get_weather(city='Par")
    assert parser.feed("is',") == [
        ToolCallBegun(0, "get_weather"),
        ToolArgumentsDelta(0, '{"city": "Paris"'),
    ]
    assert parser.feed(" days=2)") == [
        ToolArgumentsDelta(0, ', "days": 2'),
        ToolArgumentsDelta(0, "}"),
    ]


def test_without_tools_or_with_the_choice_none_calls_are_text() -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    form = form_of([], {}, {}, "hermes")
    assert message_of(streamed(form, [text], tools=())).text == text
    assert message_of(streamed(form, [text], choice=ToolChoice("none"))).text == text
    assert parsed(form_of([], {}, {}, "none"), text).text == text

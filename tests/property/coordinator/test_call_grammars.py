"""Grammars of calls, walked at random: whatever they let a model write is read as calls, and the
arguments follow the schemas of the tools."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coordinator.conversation.choice import CALLS, form_of
from coordinator.conversation.family import FamilyForm
from coordinator.conversation.message import (
    AssistantMessage,
    Thinking,
    Tool,
    ToolChoice,
    message_of,
)
from coordinator.grammars.error import GrammarError
from coordinator.grammars.kinds import ANY_JSON, GrammarKind
from tests.support.coordinator.written_calls import WRITERS, calls_of, streamed
from tests.support.models.grammars import accepts, compiler, draw, tokenizer
from tests.support.models.json_schemas import is_valid

MAX_NEW_TOKENS = 2000
THOUGHT = "Which of them?\n</think>\n\n"
PLACE = {
    "type": "object",
    "$defs": {"city": {"enum": ["Paris", "Oslo"]}},
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "is_exact": {"type": "boolean"},
        "unit": {"enum": ["metric", None, 7]},
        "at": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    },
    "required": ["city", "at"],
    "additionalProperties": False,
}
ALL_OPTIONAL = {
    "properties": {
        "first": {"type": "boolean"},
        "unit": {"enum": ["km", "sea mile"]},
        "third": {"const": [1]},
    },
    "additionalProperties": False,
}
ODD = {
    "type": "object",
    "properties": {"a b": {"enum": ["x"]}, "self": {"const": 1}},
    "required": ["a b"],
    "additionalProperties": False,
}
"""No keywords of Python, nor words in tags."""
TOOLS = (
    Tool("place", "", PLACE),
    Tool("options", "", ALL_OPTIONAL),
    Tool("odd", "", ODD),
    Tool("nothing"),
)
SCHEMAS: dict[str, Any] = {
    tool.name: tool.parameters or {"type": "object", "maxProperties": 0} for tool in TOOLS
}
PARSERS = [*sorted(CALLS.keys() - {"none", "qwen", "qwen25"}), "mistral with names"]
CHOICES = [
    *(ToolChoice("required", is_parallel=is_parallel) for is_parallel in (True, False)),
    *(ToolChoice("named", tool.name) for tool in TOOLS),
]


def form(parser: str, reasoning: str = "qwen3") -> FamilyForm:
    has_args = parser == "mistral with names"
    tokens = {"[ARGS]": True} if has_args else {}
    return form_of([], tokens, {}, "mistral" if has_args else parser, reasoning)


@functools.cache
def compiled(
    parser: str, choice: ToolChoice, thinking: Thinking, strict: frozenset[str] = frozenset()
) -> str:
    made = form(parser).grammar(tools_with(parser, strict), choice, thinking)
    assert made is not None
    return compiler().compile_now(*made)


def tools_with(parser: str, strict: frozenset[str]) -> Sequence[Tool]:
    tools = [Tool(t.name, "", t.parameters, is_strict=t.name in strict) for t in TOOLS]
    return [tool for tool in tools if has(parser, tool.name)]


def has(parser: str, name: str) -> bool:
    """Returns whether calls of the tool can be forced."""
    return (parser, name) != ("qwen3_coder", "odd")


def message_from(parser: str, text: str, thinking: Thinking) -> AssistantMessage:
    return message_of(streamed(form(parser), [text], TOOLS, thinking))


def require_valid_calls(message: AssistantMessage, choice: ToolChoice) -> None:
    calls = calls_of(message)
    assert calls and message.text == ""
    for name, arguments in calls:
        assert is_valid(SCHEMAS[name], json.dumps(arguments)), (name, arguments)
    if choice.kind == "named":
        assert [name for name, _ in calls] == [choice.name]
    if not choice.is_parallel:
        assert len(calls) == 1


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=60)
@given(st.sampled_from(CHOICES), st.integers(0, 1 << 32))
def test_what_must_be_called_is_called(parser: str, choice: ToolChoice, seed: int) -> None:
    assume(has(parser, choice.name))
    answer = draw(compiled(parser, choice, "off"), MAX_NEW_TOKENS, seed)
    assert answer.has_ended
    require_valid_calls(message_from(parser, answer.text, "off"), choice)


@pytest.mark.parametrize("thinking", ["free", "open"])
@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=20)
@given(st.sampled_from(CHOICES), st.integers(0, 1 << 32))
def test_a_model_may_think_before_it_calls(
    parser: str, thinking: Thinking, choice: ToolChoice, seed: int
) -> None:
    assume(has(parser, choice.name))
    thought = f"<think>\n{THOUGHT}" if thinking == "free" else THOUGHT
    before = tokenizer().tokenize_str(thought)
    answer = draw(compiled(parser, choice, thinking), MAX_NEW_TOKENS, seed, before=before)
    assert answer.has_ended
    message = message_from(parser, answer.text, thinking)
    assert message.reasoning == "Which of them?"
    require_valid_calls(message, choice)


THOUGHTS: list[tuple[Thinking, str]] = [
    ("free", "<think>Hm.</think>\n\n"),
    ("open", "Hm.</think>"),
]
STRICT = frozenset({"place", "options"})
GOOD = {"city": "Oslo", "at": [1]}


FAMILIES = {
    **{parser: family for family, (parser, _) in WRITERS.items()},
    "mistral": "a list of mistral",
    "mistral with names": "mistral with names",
    "llama3": "llama",
}


def written(parser: str, name: str, arguments: dict[str, Any]) -> str:
    """Returns a call as grammars write it: with JSON's quotes, and without ids."""
    text = WRITERS[FAMILIES[parser]][1]([(name, arguments)])
    return re.sub(r', "id": "\w+"', "", text).replace("'", '"')


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_strict_tools_are_called_rightly_or_not(parser: str, is_parallel: bool) -> None:
    grammar = compiled(parser, ToolChoice("auto", is_parallel=is_parallel), "off", STRICT)
    for text in (
        "",
        "Yes.\n",
        written(parser, "place", GOOD),
        written(parser, "nothing", {"a": 1}),
    ):
        assert accepts(grammar, text), text
    for name, arguments in (
        ("place", {}),
        ("place", {"city": 7, "at": []}),
        ("options", {"first": 1}),
    ):
        assert not accepts(grammar, written(parser, name, arguments)), (name, arguments)


@pytest.mark.parametrize("parser", PARSERS)
def test_tools_that_nobody_needs_strict_leave_the_model_free(parser: str) -> None:
    assert form(parser).grammar(TOOLS, ToolChoice(), "free") is None
    assert form(parser).grammar(TOOLS, ToolChoice("none"), "free") is None


@pytest.mark.parametrize(
    ("kind", "source", "answer"),
    [
        ("json_schema", '{"const": 1}', "1"),
        ("json_schema", ANY_JSON, "{}"),
        ("regex", "a+", "aa"),
        ("ebnf", 'root ::= "b"', "b"),
    ],
)
def test_a_clients_grammar_holds_behind_the_thought(
    kind: GrammarKind, source: str, answer: str
) -> None:
    for thinking, thought in THOUGHTS:
        made = form("hermes").grammar_after_thought(kind, source, thinking)
        grammar = compiler().compile_now(*made)
        assert accepts(grammar, thought + answer) and not accepts(grammar, thought + "no")
        assert accepts(grammar, answer) == (thinking == "free")
    assert form("hermes").grammar_after_thought(kind, source, "off") == (kind, source)


ODD_SCHEMAS: list[dict[str, Any]] = [
    {"properties": [1]},
    {"required": True},
    {"required": [[]]},
    {"properties": {"a": 7}},
    {"type": ["object", "null"], "properties": {"a": True}, "required": ["b"]},
    {"properties": {"if": {"$ref": "#/properties/if"}}},
    {"$defs": 3, "properties": {"a": {"$ref": "#/$defs/b"}}},
]


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("schema", ODD_SCHEMAS)
def test_schemas_of_clients_are_followed_or_refused(parser: str, schema: dict[str, Any]) -> None:
    with contextlib.suppress(GrammarError):
        made = form(parser).grammar([Tool("odd", "", schema)], ToolChoice("required"), "off")
        assert made is not None
        compiler().compile_now(*made)


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"not": schema}
    tool = Tool("deep", "", {"properties": {"a": schema}})
    for parser in PARSERS:
        with pytest.raises(GrammarError, match="deep"):
            form(parser).grammar([tool], ToolChoice("required"), "off")


@pytest.mark.parametrize("source", ["{", "[" * 100_000])
def test_a_schema_that_is_no_json_stays_for_the_compiler(source: str) -> None:
    made = form("hermes").grammar_after_thought("json_schema", source, "open")
    assert made == ("json_schema", source)


def test_a_string_between_tags_is_free_and_rules_for_it_are_refused() -> None:
    def tool(**rules: Any) -> Tool:
        return Tool("say", "", {"properties": {"text": {"type": "string", **rules}}})

    made = form("qwen3_coder").grammar([tool()], ToolChoice("required"), "off")
    assert made is not None
    grammar = compiler().compile_now(*made)
    text = WRITERS["qwen coder"][1]([("say", {"text": "a\n<b> 1"})])
    assert accepts(grammar, text) and not accepts(grammar, text.replace("text", "test"))
    for refused in (tool(pattern="a+"), Tool("say", "", {"anyOf": [{}]})):
        with pytest.raises(GrammarError, match=r"leave the rules out"):
            form("qwen3_coder").grammar([refused], ToolChoice("required"), "off")

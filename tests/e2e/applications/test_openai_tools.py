"""Tools and thoughts with OpenAI's own package, against models that write what a script says, each
in the form of its family."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessage

from tests.support.coordinator.written_calls import WRITERS, Call
from tests.support.models.scripted import marker, scripted_model
from tests.support.processes.clusters import start_cluster

CALLS: list[Call] = [("get_weather", {"city": "Oslo", "days": 2}), ("now", {})]
TEXT = "It rains in Oslo: 日本 👍."
THOUGHT = "Rain is likely."
FAMILIES = {
    "qwen2.5": ("hermes", ""),
    "qwen3": ("hermes", f"<think>\n{THOUGHT}\n</think>\n\n"),
    "llama3": ("llama", ""),
    "mistral": ("a list of mistral", ""),
}
"""How a family writes calls, and what it writes before."""
NO_THOUGHTS = {"chat_template_kwargs": {"enable_thinking": False}}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]


class Asked:
    """A client of a cluster that serves the scripted model of a family: script 0 has calls, script
    1 is a text."""

    def __init__(self, client: OpenAI, family: str) -> None:
        self.family = family
        self._client = client

    def whole(self, script: int, *later: Any, **given: Any) -> tuple[ChatCompletionMessage, str]:
        answer = self._client.chat.completions.create(**self._body(script, later, given))
        (choice,) = answer.choices
        return choice.message, choice.finish_reason

    def stream(self, script: int, **given: Any) -> list[Any]:
        body = self._body(script, (), given) | {"stream": True}
        return [event.choices[0] for event in self._client.chat.completions.create(**body)]

    def _body(self, script: int, later: Any, given: dict[str, Any]) -> dict[str, Any]:
        question = {"role": "user", "content": f"{'Weather? ' * 40}{marker(script)}"}
        common = {"model": "default", "tools": TOOLS, "max_tokens": 300, "temperature": 0}
        return common | {"messages": [question, *later]} | given


FOR_VERIFY = ("qwen2.5", "mistral")
"""A cluster for each family takes seconds."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.verify if name in FOR_VERIFY else ())
        for name in FAMILIES
    ],
)
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asked]:
    family = request.param
    writer, before = FAMILIES[family]
    scripts = [before + WRITERS[writer][1](CALLS), before + TEXT]
    model = scripted_model(tmp_path_factory.mktemp("scripted"), family, scripts)
    cluster = start_cluster(
        tmp_path_factory, model, 1, 1, dtype="float32", max_total_tokens="16384"
    )
    with OpenAI(base_url=f"{cluster.local.url}/v1", api_key="x", max_retries=0) as client:
        yield Asked(client, family)
    cluster.local.stop()


def calls_of(message: ChatCompletionMessage) -> list[Call]:
    calls: list[Any] = message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_calls_are_read(asked: Asked) -> None:
    message, reason = asked.whole(0)
    assert calls_of(message) == CALLS and reason == "tool_calls" and not message.content
    assert len({call.id for call in message.tool_calls or ()}) == 2


def test_streamed_calls_are_those_of_the_whole_message(asked: Asked) -> None:
    choices = asked.stream(0)
    names: dict[int, str] = {}
    arguments = ["", ""]
    for call in [call for choice in choices for call in choice.delta.tool_calls or ()]:
        if call.id is not None:
            assert call.index == len(names), "each call is told once, in order"
            names[call.index] = call.function.name
        arguments[call.index] += call.function.arguments
    told = [(names[i], json.loads(arguments[i])) for i in sorted(names)]
    assert told == CALLS and choices[-1].finish_reason == "tool_calls"


def test_a_loop_of_calls_ends_with_a_text(asked: Asked) -> None:
    message, _ = asked.whole(0)
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"rain {marker(1)}"}
        for call in message.tool_calls or ()
    ]
    answer, reason = asked.whole(0, message, *results)
    assert answer.content == TEXT and reason == "stop" and answer.tool_calls is None


@pytest.mark.parametrize("is_named", [False, True])
def test_a_call_is_forced_where_the_model_would_write_text(asked: Asked, is_named: bool) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    choice = named if is_named else "required"
    message, reason = asked.whole(1, tool_choice=choice, extra_body=NO_THOUGHTS)
    called = calls_of(message)
    assert called and reason == "tool_calls"
    assert not is_named or [name for name, _ in called] == ["get_weather"]
    for name, arguments in called:
        assert name == "now" or isinstance(arguments["city"], str)


def test_no_calls_are_read_where_none_are_wanted(asked: Asked) -> None:
    message, reason = asked.whole(0, tool_choice="none")
    assert message.tool_calls is None and reason == "stop" and "get_weather" in message.content


def test_thoughts_come_before_and_apart_from_text_and_calls(asked: Asked) -> None:
    thinks = asked.family == "qwen3"
    for script in (0, 1):
        message, _ = asked.whole(script)
        assert getattr(message, "reasoning_content", None) == (THOUGHT if thinks else None)
        kinds = []
        for choice in asked.stream(script):
            if getattr(choice.delta, "reasoning_content", None):
                kinds.append("thought")
            elif choice.delta.content or choice.delta.tool_calls:
                kinds.append("answer")
        assert kinds == sorted(kinds, reverse=True) and ("thought" in kinds) == thinks
    kept, _ = asked.whole(1, extra_body={"separate_reasoning": False})
    assert (THOUGHT in (kept.content or "")) == thinks and TEXT in (kept.content or "")


def test_a_format_binds_the_text(asked: Asked) -> None:
    schema = {
        "type": "object",
        "properties": {"rain": {"type": "boolean"}},
        "required": ["rain"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}}
    message, reason = asked.whole(1, response_format=form, extra_body=NO_THOUGHTS)
    assert reason == "stop" and json.loads(message.content or "").keys() == {"rain"}


@pytest.mark.parametrize("text", ["<tool_call>a", "</think>", "[TOOL_CALLS]", "<|im_end|>x"])
def test_a_text_that_some_families_have_a_token_for_can_be_forced(asked: Asked, text: str) -> None:
    given = NO_THOUGHTS | {"regex": re.escape(text)}
    message, reason = asked.whole(1, tool_choice="none", extra_body=given)
    assert (message.content, reason) == (text, "stop")

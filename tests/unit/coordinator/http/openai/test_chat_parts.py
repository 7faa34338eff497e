"""Thoughts and calls of a model's form reach clients of OpenAI's dialect, whole and in streams."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.answers.chat_template import ChatTemplate
from coordinator.http.answering.endpoints import PostEndpoints
from coordinator.http.openai.chats.endpoint import ChatCompletions
from coordinator.service import Service
from protocol.channel import Channel
from protocol.messages import Generate, TokenOut, TokensOut
from tests.support.coordinator.scripted_form import ScriptedForm
from tests.support.coordinator.services import D0, DEADLINE_S, received, run, running_service

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("add", "weather")
]
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": TOOLS,
    "ignore_eos": True,
}
WRITTEN = '(why)so[add:{"a":1}][weather:{}]'


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


async def answered(
    service: Service, decode: Channel, body: dict[str, Any], text: str = WRITTEN
) -> tuple[Any, Generate | None]:
    """What comes for a body, if the model writes `text` token by token; events of a stream as a
    list."""
    sent: list[bytes] = []
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def nobody(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it went elsewhere")

    handler = ChatCompletions(service, ScriptedForm())
    endpoints = PostEndpoints(nobody, {"/chat": handler}, max_body_bytes=1 << 20)
    scope = {"type": "http", "path": "/chat", "method": "POST", "headers": []}
    handling = asyncio.create_task(endpoints(scope, incoming.get, send))
    asking = asyncio.create_task(received(decode, 1))
    await asyncio.wait({handling, asking}, return_when=asyncio.FIRST_COMPLETED)
    if handling.done():
        asking.cancel()
        return json.loads(b"".join(sent)), None
    (generate,) = await asking
    assert isinstance(generate, Generate)
    tokens = await service.tokenizer.encode(text, with_special_tokens=False)
    for i, token in enumerate(tokens):
        finish = "stop" if i == len(tokens) - 1 else ""
        service.handle(TokensOut([TokenOut(generate.attempt, i, [token], finish)], D0))
        await asyncio.sleep(0)
    await asyncio.wait_for(handling, DEADLINE_S)
    whole = b"".join(sent).decode()
    if not body.get("stream"):
        return json.loads(whole), generate
    events = [line.removeprefix("data: ") for line in whole.splitlines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]], generate


def ask(
    decode: Channel, text: str = WRITTEN, template: str | None = None, **given: Any
) -> tuple[Any, Generate | None]:
    """The same, with a service of its own, whose model may have another chat template."""
    result: list[tuple[Any, Generate | None]] = []

    async def test() -> None:
        async with running_service(decode) as service:
            if template is not None:
                service.tokenizer.chat_template = ChatTemplate({"default": template}, {})
            result.append(await answered(service, decode, ASKED | given, text))

    run(test)
    return result[0]


def test_a_whole_message_has_its_parts(decode: Channel) -> None:
    answer, _ = ask(decode)
    (choice,) = answer["choices"]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == ("why", "so")
    functions = [call["function"] for call in message["tool_calls"]]
    assert functions == [
        {"name": "add", "arguments": '{"a":1}'},
        {"name": "weather", "arguments": "{}"},
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert choice["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_a_stream_tells_each_call_once_and_its_arguments_in_pieces(decode: Channel) -> None:
    events, _ = ask(decode, stream=True)
    deltas = [event["choices"][0]["delta"] for event in events]
    kinds = [next(iter(delta.keys() - {"role"}), "end") for delta in deltas]
    order = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    assert order == ["content", "reasoning_content", "content", "tool_calls", "end"]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    begun = [call for call in calls if "id" in call]
    assert [(one["index"], one["function"]["name"]) for one in begun] == [
        (0, "add"),
        (1, "weather"),
    ]
    assert all(one["type"] == "function" and one["function"]["arguments"] == "" for one in begun)
    assert all(call.keys() == {"index", "function"} for call in calls if call not in begun)
    pieces = ["", ""]
    for call in calls:
        pieces[call["index"]] += call["function"]["arguments"]
    assert pieces == ['{"a":1}', "{}"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("given", "content"),
    [
        ({"separate_reasoning": False, "tools": None}, WRITTEN),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "(why)so"),
        ({"reasoning_effort": "none"}, "(why)so"),
        ({"include_reasoning": False}, "so"),
    ],
)
def test_thoughts_may_be_unwanted(decode: Channel, given: dict[str, Any], content: str) -> None:
    answer, _ = ask(decode, **given)
    message = answer["choices"][0]["message"]
    assert message["content"] == content and "reasoning_content" not in message


def test_ids_of_calls_are_such_as_the_template_takes(decode: Channel) -> None:
    """Mistral's refuse all others when they are sent back."""
    refusing = (
        "{% if false %}{{ raise_exception('alphanumeric strings with length 9!') }}{% endif %}"
    )
    for template, form in ((refusing + "Hello", "[a-zA-Z0-9]{9}"), ("Hello", "call_[0-9a-f]{28}")):
        answer, _ = ask(decode, template=template)
        ids = [call["id"] for call in answer["choices"][0]["message"]["tool_calls"]]
        assert len(set(ids)) == 2 and all(re.fullmatch(form, one) for one in ids)


def test_thoughts_may_come_as_one_piece(decode: Channel) -> None:
    events, _ = ask(decode, "(because)yes", stream=True, stream_reasoning=False)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert [d["reasoning_content"] for d in deltas if "reasoning_content" in d] == ["because"]
    assert "".join(d.get("content", "") for d in deltas) == "yes"


def test_no_calls_are_looked_for_with_tool_choice_none(decode: Channel) -> None:
    answer, _ = ask(decode, tool_choice="none")
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop" and "tool_calls" not in choice["message"]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "add"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"function": {"name": "add"}}]},
        },
    ],
)
def test_a_forced_call_is_a_grammar(decode: Channel, choice: Any) -> None:
    answer, generate = ask(
        decode, "[add:{}]", tool_choice=choice, response_format={"type": "json_object"}
    )
    assert generate is not None and "add" in generate.sampling.grammar
    assert ("weather" in generate.sampling.grammar) == (choice == "required")
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "none of tools"),
        ({"tool_choice": "required", "tools": []}, "no tools"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two functions"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"functions": [{"name": "x"}]}, "use tools"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": 5}}, "allowed_tools must be"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": True}}},
            "tool_choice.allowed_tools.tools must be a list",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs has messages"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs has self"),
        ({"messages": None}, "messages is missing"),
    ],
)
def test_what_cannot_be_told_the_model_is_named(
    decode: Channel, given: dict[str, Any], words: str
) -> None:
    answer, generate = ask(decode, **given)
    assert generate is None and words in answer["error"]["message"]

"""Any body of /v1 is answered or refused with a sentence, and a stream says what the whole says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.http.openai.keys import CHAT_KEYS, COMPLETION_KEYS
from tests.support.coordinator.answering_server import AnsweringServer, answering_server

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("add", "now")
]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": "日本 👍"}}\n</tool_call>'
FRAGMENTS = ["Hello ", "👍", CALL, CALL.replace("add", "now"), CALL.replace("add", "x"), "STOP"]
FRAGMENTS += ["<think>", "</think>", "<tool_call>", "</tool_call>", "\n", '{"name": "add"']
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {
        "messages": [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "1"}]},
        ],
        "tools": TOOLS,
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto", "tools": TOOLS[:1]},
        },
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        "stream_options": {"include_usage": True},
        "max_tokens": 8,
    },
    TEXTS: {
        "prompt": ["Hello", "you"],
        "structured_outputs": {"json": {"type": "object"}},
        "logit_bias": {"7": 1.0},
        "max_tokens": 8,
    },
}
KEYS = {
    CHAT: [key.name for key in CHAT_KEYS],
    TEXTS: [key.name for key in COMPLETION_KEYS],
}
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 70),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
        st.sampled_from(["user", "add", "auto", "required", "function", "text", "object", "root"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "text", "name", "function", "schema", "$ref", "x"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def server() -> Iterator[AnsweringServer]:
    with answering_server() as one:
        yield one


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value in `value`."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))
        else:
            yield (*path, key)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A path, and a body for it: a good one with some of its values, or its keys, replaced."""
    path = draw(st.sampled_from([CHAT, TEXTS]))
    body = json.loads(json.dumps(GOOD[path]))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.sampled_from(list(places(body)) or [("x",)]))
        holder = body
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = draw(VALUES)
    for key in draw(st.lists(st.sampled_from(KEYS[path]), max_size=2)):
        body[key] = draw(VALUES)
    if draw(st.booleans()):
        body["stream"] = True
    return path, body


def events_of(raw: bytes) -> list[dict[str, Any]]:
    events = [line.removeprefix("data: ") for line in raw.decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@settings(max_examples=150, deadline=None)
@given(asked=bodies())
def test_any_body_is_answered_or_refused_with_the_key(
    server: AnsweringServer, asked: tuple[str, dict[str, Any]]
) -> None:
    path, body = asked
    server.text = "Hello"
    reply = server.ask(path, body)
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert reply.status_code in (400, 404), error
        assert error["param"] and error["message"]
        return
    parts = events_of(reply.content) if body.get("stream") is True else [reply.json()]
    assert parts and not any("error" in part for part in parts)
    for usage in [part["usage"] for part in parts if part.get("usage")]:
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    finishes = [choice["finish_reason"] for part in parts for choice in part["choices"]]
    assert finishes and set(finishes) <= {"stop", "length", "tool_calls", None}


def joined(events: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The message that the events of one choice make, and its finish reason."""
    text, thoughts, calls, finishes = "", "", dict[int, list[str]](), []
    for choice in [choice for event in events for choice in event["choices"]]:
        delta = choice["delta"]
        text += delta.get("content") or ""
        thoughts += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", []):
            function = call["function"]
            one = calls.setdefault(call["index"], [function.get("name", ""), ""])
            one[1] += function["arguments"]
        finishes.append(choice["finish_reason"])
    (finish,) = [finish for finish in finishes if finish]
    return {"content": text, "reasoning": thoughts, "calls": list(calls.values())}, finish


@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join),
    max_tokens=st.integers(1, 80),
    more=st.fixed_dictionaries(
        {},
        optional={
            "stop": st.sampled_from([["STOP"], ["name"], ["👍"]]),
            "separate_reasoning": st.booleans(),
            "stream_reasoning": st.booleans(),
            "logprobs": st.just(True),
            "tool_choice": st.sampled_from(["none", "auto"]),
        },
    ),
)
def test_the_parts_of_a_stream_are_the_whole_message(
    server: AnsweringServer, text: str, max_tokens: int, more: dict[str, Any]
) -> None:
    """But for a call that never becomes whole: a stream has shown its beginning by then, and the
    whole message has its text."""
    server.text = text
    body = {"messages": [{"role": "user", "content": "Hello"}], "tools": TOOLS, **more}
    body |= {"max_tokens": max_tokens, "stream_options": {"include_usage": True}}
    whole = server.ask(CHAT, body).json()
    *events, last = events_of(server.ask(CHAT, body | {"stream": True}).content)
    (choice,) = whole["choices"]
    message = choice["message"]
    calls = [
        [c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls", ())
    ]
    expected = {
        "content": message["content"] or "",
        "reasoning": message.get("reasoning_content", ""),
        "calls": calls,
    }
    streamed, finish = joined(events)
    assert finish == choice["finish_reason"] and last["usage"] == whole["usage"]
    if len(streamed["calls"]) == len(calls):
        assert streamed == expected
    else:
        assert all(call in streamed["calls"] for call in calls)
        assert streamed["content"] != expected["content"]
    if "logprobs" in more:
        pieces = [
            e["choices"][0]["logprobs"]["content"] for e in events if e["choices"][0]["logprobs"]
        ]
        assert [one for some in pieces for one in some] == choice["logprobs"]["content"]

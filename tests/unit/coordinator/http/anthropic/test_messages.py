"""Chats in Anthropic's form before a node that writes what it is told to: whole and in streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.http.anthropic.endpoint import CountTokens, Messages
from protocol.channel import Channel
from tests.support.coordinator.written_answers import CACHED, Told, ask, tokens_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ASKED: dict[str, Any] = {
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": [{"name": name, "input_schema": SCHEMA} for name in ("add", "weather")],
}
WRITTEN = '(why)so[add:{"a":1}][weather:{}]'
ORDER = [
    "message_start",
    *("content_block_start", "ping", "content_block_delta", "content_block_stop"),
    *("content_block_start", "content_block_delta", "content_block_stop") * 3,
    "message_delta",
    "message_stop",
]
"""The events of a thought, a text and two calls, as Anthropic's documentation of streams has them;
deltas that follow each other are one."""


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def told(decode: Channel, written: str = WRITTEN, finish: str = "stop", **given: Any) -> Told:
    return ask(Messages, decode, ASKED | given, written, finish)


def test_a_whole_message_has_its_blocks(decode: Channel) -> None:
    message = told(decode).json
    thought, text, add, weather = message["content"]
    assert thought.pop("signature") and thought == {"type": "thinking", "thinking": "why"}
    assert text == {"type": "text", "text": "so", "citations": None}
    assert (add["type"], add["name"], add["input"]) == ("tool_use", "add", {"a": 1})
    assert (weather["name"], weather["input"]) == ("weather", {})
    assert add["id"].startswith("toolu_") and add["id"] != weather["id"]
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["id"].startswith("msg_")
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)


def test_usage_counts_what_was_cached_apart(decode: Channel) -> None:
    whole = told(decode)
    assert whole.generate is not None
    usage, num_tokens = whole.json["usage"], len(tokens_of(whole.generate))
    assert usage["cache_read_input_tokens"] == CACHED
    assert usage["input_tokens"] + CACHED == num_tokens
    assert usage["cache_creation_input_tokens"] == 0
    assert 0 < usage["output_tokens_details"]["thinking_tokens"] < usage["output_tokens"]


def test_events_of_a_stream_come_in_anthropics_order(decode: Channel) -> None:
    events = told(decode, stream=True).events
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    order = [
        name
        for i, name in enumerate(names)
        if name != "content_block_delta" or names[i - 1] != name
    ]
    assert order == ORDER


def test_a_stream_is_the_same_message(decode: Channel) -> None:
    whole, events = told(decode).json, told(decode, stream=True).events
    message = events[0][1]["message"]
    assert message["content"] == [] and message["stop_reason"] is None
    start, end = message["usage"], events[-2][1]["usage"]
    assert start["input_tokens"] == end["input_tokens"] == whole["usage"]["input_tokens"]
    assert end == whole["usage"]
    blocks: list[dict[str, Any]] = []
    grown = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}
    for _, data in events:
        if data["type"] == "content_block_start":
            assert data["index"] == len(blocks)
            blocks.append({"json": ""} | data["content_block"])
        elif data["type"] == "content_block_delta":
            assert data["index"] == len(blocks) - 1
            delta = data["delta"]
            if delta["type"] == "signature_delta":
                assert delta["signature"]
            else:
                blocks[-1][grown[delta["type"]]] += list(delta.values())[1]
    texts = [(b["type"], b.get("thinking", b.get("text")), b["json"]) for b in blocks]
    assert texts == [
        ("thinking", "why", ""),
        ("text", "so", ""),
        ("tool_use", None, '{"a":1}'),
        ("tool_use", None, "{}"),
    ]
    assert events[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


@pytest.mark.parametrize(
    ("given", "text", "finish", "reason", "sequence"),
    [
        ({}, "so", "stop", "end_turn", None),
        ({}, "so", "length", "max_tokens", None),
        ({"stop_sequences": ["o b"]}, "so be it", "stop", "stop_sequence", "o b"),
        ({"max_tokens": 1 << 20}, "so", "length", "model_context_window_exceeded", None),
    ],
)
def test_why_a_message_ends(
    decode: Channel,
    given: dict[str, Any],
    text: str,
    finish: str,
    reason: str,
    sequence: str | None,
) -> None:
    whole = told(decode, text, finish, **given).json
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    delta = told(decode, text, finish, stream=True, **given).events[-2][1]["delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_failure_amid_a_stream_is_its_last_event(decode: Channel) -> None:
    failed = ask(Messages, decode, ASKED | {"stream": True}, "so", fails="it is too long")
    name, data = failed.events[-1]
    assert (name, data["type"]) == ("error", "error")
    assert data["error"]["type"] == "invalid_request_error"
    assert "too long" in data["error"]["message"]


def test_parameters_travel_to_the_node(decode: Channel) -> None:
    given = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.75, "top_k": 5, "cache_salt": "me"}
    generate = told(decode, "so", **given).generate
    assert generate is not None and generate.max_new_tokens == 9
    sampling = generate.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.75, 5)
    assert "me" in generate.namespace.salt


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
def test_a_call_that_is_wanted_is_enforced(decode: Channel, choice: dict[str, Any]) -> None:
    generate = told(decode, "[add:{}]", tool_choice=choice).generate
    assert generate is not None and "add" in generate.sampling.grammar


def test_a_count_is_that_of_the_prompt(decode: Channel) -> None:
    body = ASKED | {"system": [{"type": "text", "text": "Be brief."}]}
    sent = ask(Messages, decode, body, "so").generate
    assert sent is not None
    for counted in (body, {k: v for k, v in body.items() if k != "max_tokens"}):
        count = ask(CountTokens, decode, counted)
        assert count.generate is None and count.json == {"input_tokens": len(tokens_of(sent))}


def test_a_billing_header_is_no_part_of_the_prompt(decode: Channel) -> None:
    def prompt(system: object) -> str:
        return told(decode, "so", system=system).prompt

    header = "x-anthropic-billing-header: cc_version=2.1.9.c1; cc_entrypoint=cli; cch={};"
    without = prompt("Be brief.")
    assert "Be brief." in without
    for cch in ("a1b2c", "00000"):
        line = header.format(cch)
        assert prompt(f"{line}\nBe brief.") == without
        blocks = [{"type": "text", "text": text} for text in (line, "Be brief.")]
        assert prompt(blocks) == without


def test_a_chat_that_ends_with_the_assistant_goes_on(decode: Channel) -> None:
    messages = [*ASKED["messages"], {"role": "assistant", "content": "Good mor"}]
    assert told(decode, "ning", messages=messages).prompt.endswith("Good mor")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0] is of type 'image'",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"name": "add"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "tool", "name": "other"}}, "'other'"),
        ({"tools": [], "tool_choice": {"type": "any"}}, "there are no tools"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": [7]}, "stop_sequences"),
        ({"model": "claude-none"}, "claude-none"),
        ({"messages": [{"role": "user", "content": "word " * 50_000}]}, "prompt is too long"),
        ({"container": "c"}, "container"),
    ],
)
def test_errors_name_what_is_wrong(decode: Channel, given: dict[str, Any], words: str) -> None:
    refused = told(decode, **given)
    assert refused.generate is None
    assert refused.status == (404 if "model" in given else 400)
    body = refused.json
    assert body["type"] == "error" and words in body["error"]["message"]
    kind = "not_found_error" if "model" in given else "invalid_request_error"
    assert body["error"]["type"] == kind

"""Responses before a node that writes what it is told to: whole and in streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.http.responses.endpoint import Responses
from coordinator.http.responses.items import unpacked
from protocol.channel import Channel
from tests.support.coordinator.written_answers import CACHED, Told, ask, tokens_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ASKED: dict[str, Any] = {
    "input": "Hello",
    "tools": [
        {"type": "function", "name": "add", "parameters": SCHEMA},
        {"type": "custom", "name": "patch", "description": "Any text."},
        {"type": "web_search"},
        {"type": "local_shell"},
    ],
}
WRITTEN = '(why)so[add:{"a":1}][patch:{"input":"*** a\\n"}]'
ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.reasoning_text.delta",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.output_item.added",
    "response.custom_tool_call_input.delta",
    "response.custom_tool_call_input.done",
    "response.output_item.done",
    "response.completed",
]
"""The events of a thought, a text, a call and a call of a custom tool, as OpenAI's documentation of
streams has them; deltas that follow each other are one."""


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def told(decode: Channel, written: str = WRITTEN, finish: str = "stop", **given: Any) -> Told:
    return ask(Responses, decode, ASKED | given, written, finish)


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs between two with the same answer."""
    output = [
        {key: value for key, value in item.items() if key not in ("id", "call_id")}
        for item in response["output"]
    ]
    return response | {"output": output, "id": "", "created_at": 0}


def test_a_whole_response_has_its_items(decode: Channel) -> None:
    response = told(decode).json
    thought, message, call, free = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "why"}]
    assert thought["summary"] == [] and thought["encrypted_content"] is None
    assert (message["role"], message["content"][0]["text"]) == ("assistant", "so")
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "add", '{"a":1}')
    assert (free["type"], free["name"], free["input"]) == ("custom_tool_call", "patch", "*** a\n")
    assert len({item["id"] for item in response["output"]}) == 4
    assert call["call_id"] != free["call_id"]
    assert (response["object"], response["status"]) == ("response", "completed")
    assert response["id"].startswith("resp_") and response["store"] is False


def test_usage_always_tells_of_caches_and_thoughts(decode: Channel) -> None:
    for text, thinks in (("so", False), ("(why)so", True)):
        whole = told(decode, text)
        assert whole.generate is not None
        usage = whole.json["usage"]
        assert usage["input_tokens"] == len(tokens_of(whole.generate))
        assert usage["input_tokens_details"]["cached_tokens"] == CACHED
        assert (usage["output_tokens_details"]["reasoning_tokens"] > 0) == thinks
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_events_of_a_stream_come_in_openais_order(decode: Channel) -> None:
    events = told(decode, stream=True).events
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events]
    order = [
        name for i, name in enumerate(names) if not name.endswith("delta") or names[i - 1] != name
    ]
    assert order == ORDER


def test_a_stream_is_the_same_response(decode: Channel) -> None:
    whole, events = told(decode).json, told(decode, stream=True).events
    last = events[-1][1]["response"]
    assert without_ids(last) == without_ids(whole)
    items: dict[str, dict[str, Any]] = {}
    texts: dict[str, str] = {}
    for name, data in events:
        if name == "response.output_item.added":
            assert data["output_index"] == len(items)
            items[data["item"]["id"]] = data["item"]
        elif name == "response.output_item.done":
            assert data["item"] == last["output"][data["output_index"]]
            begun = items[data["item"]["id"]]
            assert begun.get("call_id") == data["item"].get("call_id")
        elif name.endswith(".delta"):
            assert data["item_id"] == list(items)[data["output_index"]]
            texts[data["item_id"]] = texts.get(data["item_id"], "") + data["delta"]
    assert [item["id"] for item in last["output"]] == list(items) == list(texts)
    assert list(texts.values()) == ["why", "so", '{"a":1}', "*** a\n"]


@pytest.mark.parametrize("limit", [None, 1 << 20])
def test_an_answer_without_room_is_incomplete(decode: Channel, limit: int | None) -> None:
    given = {"max_output_tokens": limit}
    whole = told(decode, "so", "length", **given).json
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    name, data = told(decode, "so", "length", stream=True, **given).events[-1]
    assert name == "response.incomplete" and data["response"]["status"] == "incomplete"


def test_a_failure_amid_a_stream_is_a_failed_response(decode: Channel) -> None:
    failed = ask(Responses, decode, ASKED | {"stream": True}, "so", fails="it is too long")
    name, data = failed.events[-1]
    assert name == "response.failed" and data["sequence_number"] == len(failed.events) - 1
    response = data["response"]
    assert response["status"] == "failed"
    assert response["error"]["code"] == "invalid_prompt"
    assert "too long" in response["error"]["message"]


def test_the_response_tells_which_tools_the_model_knows(decode: Channel) -> None:
    whole = told(decode, "so")
    assert [tool["type"] for tool in whole.json["tools"]] == ["function", "custom"]
    refused = told(decode, tool_choice={"type": "web_search"})
    assert refused.status == 400 and "web_search" in refused.json["error"]["message"]


def test_thoughts_are_packed_for_clients_that_keep_them(decode: Channel) -> None:
    include = ["reasoning.encrypted_content"]
    thought = told(decode, "(why)so", include=include).json["output"][0]
    assert unpacked(thought["encrypted_content"]) == "why"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "name": "add"}, {"type": "custom", "name": "patch"}]
)
def test_a_call_that_is_wanted_is_enforced(decode: Channel, choice: Any) -> None:
    generate = told(decode, "[add:{}]", tool_choice=choice).generate
    name = "add" if choice == "required" else choice["name"]
    assert generate is not None and name in generate.sampling.grammar


def test_a_format_is_enforced(decode: Channel) -> None:
    form = {"type": "json_schema", "name": "it", "schema": SCHEMA, "strict": True}
    generate = told(decode, "{}", text={"format": form}).generate
    assert generate is not None and generate.sampling.grammar


def test_an_effort_of_none_asks_for_no_thoughts(decode: Channel) -> None:
    (message, *_) = told(decode, "(why)so", reasoning={"effort": "none"}).json["output"]
    assert message["content"][0]["text"] == "(why)so"


def test_a_billing_header_is_no_part_of_the_prompt(decode: Channel) -> None:
    line = "x-anthropic-billing-header: cc_version=2.1.9.c1; cc_entrypoint=cli; cch=a1b2c;"
    with_it = told(decode, "so", instructions=f"{line}\nBe brief.").prompt
    assert "Be brief." in with_it and with_it == told(decode, "so", instructions="Be brief.").prompt


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "nothing is stored"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": []}, "input is empty"),
        ({"input": ""}, "input is empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input_image'"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "'other'"),
        ({"tool_choice": {"type": "allowed_tools", "tools": True}}, "tool_choice.tools"),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"name": ["add"]}],
                }
            },
            "tool_choice is required",
        ),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice is required"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"input": "word " * 50_000}, "tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"model": "gpt-none"}, "gpt-none"),
    ],
)
def test_errors_name_what_is_wrong(decode: Channel, given: dict[str, Any], words: str) -> None:
    refused = told(decode, **given)
    assert refused.generate is None
    assert refused.status == (404 if "model" in given else 400)
    error = refused.json["error"]
    assert words in error["message"] and error["type"] == "invalid_request_error"

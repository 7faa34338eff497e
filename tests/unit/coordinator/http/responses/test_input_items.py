"""Items of a response's input become messages for templates."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.http.errors import BadRequest
from coordinator.http.responses.items import chat_of, packed, unpacked


def message(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "input_text", "text": text} for text in texts]}


def call(call_id: str, **arguments: int) -> dict[str, Any]:
    function = {"name": "add", "arguments": json.dumps(arguments)}
    return {"type": "function_call", "call_id": call_id, **function}


def test_what_the_model_wrote_at_once_is_one_message() -> None:
    items = [
        message("user", "a", "b"),
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "why"}]},
        {"type": "message", **message("assistant", "so")},
        call("c1", a=1),
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": '"x"\n'},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "done"}],
        },
        message("assistant", "Both."),
    ]
    user, turn, first, second, last = chat_of("", items)
    assert user == {"role": "user", "content": "a\nb"}
    assert (turn["content"], turn["reasoning_content"]) == ("so", "why")
    arguments = [json.loads(one["function"]["arguments"]) for one in turn["tool_calls"]]
    assert arguments == [{"a": 1}, {"input": '"x"\n'}]
    assert [one["id"] for one in turn["tool_calls"]] == ["c1", "c2"]
    assert first == {"role": "tool", "tool_call_id": "c1", "content": "2"}
    assert second == {"role": "tool", "tool_call_id": "c2", "content": "done"}
    assert last == {"role": "assistant", "content": "Both."}


def test_what_comes_behind_calls_is_a_message_of_its_own() -> None:
    chat = chat_of("", [call("c1"), message("assistant", "so"), call("c2")])
    ids = [[one["id"] for one in turn.get("tool_calls", ())] for turn in chat]
    assert ids == [["c1"], ["c2"]] and [turn["content"] for turn in chat] == ["", "so"]


def test_all_that_the_system_says_at_first_is_one_message() -> None:
    items = [message("developer", "b"), message("user", "c"), message("system", "d")]
    chat = chat_of("a", items)
    assert [(one["role"], one["content"]) for one in chat] == [
        ("system", "a\n\nb"),
        ("user", "c"),
        ("system", "d"),
    ]


@pytest.mark.parametrize(
    "item",
    [
        {"content": [{"type": "reasoning_text", "text": "why"}]},
        {"encrypted_content": packed("why"), "summary": []},
        {
            "encrypted_content": "of another server!",
            "summary": [{"type": "summary_text", "text": "why"}],
        },
    ],
)
def test_thoughts_come_back_in_three_ways(item: dict[str, Any]) -> None:
    (turn,) = chat_of("", [{"type": "reasoning", **item}])
    assert turn["reasoning_content"] == "why"


@pytest.mark.parametrize("thought", ["", "why", "日本 👍\n"])
def test_a_packed_thought_is_unpacked(thought: str) -> None:
    assert unpacked(packed(thought)) == thought


@pytest.mark.parametrize(
    ("item", "where"),
    [
        ("text", "input[0]"),
        ({"type": "web_search_call"}, "input[0]"),
        ({"type": "item_reference", "id": "x"}, "input[0]"),
        ({"role": "tool", "content": ""}, "input[0].role"),
        ({"role": "user", "content": 7}, "input[0].content"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[0].content[0]"),
        ({"type": "function_call", "name": "a", "arguments": "{}"}, "input[0].call_id"),
        ({"type": "function_call_output", "call_id": "a"}, "input[0].output"),
    ],
)
def test_errors_name_the_item(item: object, where: str) -> None:
    with pytest.raises(BadRequest) as error:
        chat_of("", [item])
    assert error.value.param == where and where in str(error.value)

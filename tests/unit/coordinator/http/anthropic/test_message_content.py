"""Messages in Anthropic's form become messages for templates."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.http.anthropic.content import chat_of
from coordinator.http.errors import BadRequest


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def test_a_round_of_tools_is_calls_and_results() -> None:
    calls = [
        text("I look."),
        {"type": "tool_use", "id": "toolu_abc", "name": "look", "input": {"a": [1]}},
        {"type": "tool_use", "id": "other", "name": "look", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_abc", "content": [text("one"), text("two")]},
        {"type": "tool_result", "tool_use_id": "other", "content": "none", "is_error": True},
        text("Go on."),
    ]
    chat = chat_of(
        "", [{"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    )
    turn, first, second, user = chat
    assert turn["content"] == "I look."
    assert turn["tool_calls"] == [
        {"id": "abc", "type": "function", "function": {"name": "look", "arguments": {"a": [1]}}},
        {"id": "other", "type": "function", "function": {"name": "look", "arguments": {}}},
    ]
    assert (first["role"], first["tool_call_id"]) == ("tool", "abc")
    assert first["content"] == [text("one"), text("two")]
    assert second["content"] == [text("Error:"), text("none")]
    assert user == {"role": "user", "content": "Go on."}


def test_thoughts_are_sent_back_to_the_template() -> None:
    blocks = [
        {"type": "thinking", "thinking": "why", "signature": "x"},
        {"type": "redacted_thinking", "data": "…"},
        text("so"),
    ]
    (turn,) = chat_of("", [{"role": "assistant", "content": blocks}])
    assert turn == {"role": "assistant", "content": "so", "reasoning_content": "why"}


def test_messages_of_a_user_that_follow_each_other_are_one() -> None:
    said = [("user", "a"), ("system", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    chat = chat_of("s", [{"role": role, "content": words} for role, words in said])
    assert [one["role"] for one in chat] == ["system", "user", "assistant", "user"]
    reminder = "<system-reminder>\nb\n</system-reminder>"
    assert [part["text"] for part in chat[1]["content"]] == ["a", reminder, "c"]


def test_what_is_known_of_a_block_beside_its_text_is_no_matter() -> None:
    system = [text("a", cache_control={"type": "ephemeral"}), text("b", citations=None)]
    (message,) = chat_of(system, [])
    assert message == {"role": "system", "content": [text("a"), text("b")]}


@pytest.mark.parametrize(
    ("role", "block", "where"),
    [
        ("user", {"type": "image"}, "messages[0].content[0]"),
        ("user", {"type": "tool_use"}, "messages[0].content[0]"),
        ("user", {"type": "tool_result", "content": ""}, "messages[0].content[0].tool_use_id"),
        (
            "user",
            {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]},
            "messages[0].content[0].content[0]",
        ),
        ("assistant", {"type": "tool_use", "id": "x", "name": "y"}, "messages[0].content[0].input"),
        ("assistant", {"type": "text"}, "messages[0].content[0].text"),
        ("assistant", "text", "messages[0].content[0]"),
    ],
)
def test_errors_name_the_block(role: str, block: object, where: str) -> None:
    with pytest.raises(BadRequest) as error:
        chat_of("", [{"role": role, "content": [block]}])
    assert error.value.param == where and where in str(error.value)


@pytest.mark.parametrize("role", ["tool", "", None, 5, ["user"], {"role": "user"}])
def test_a_role_of_any_type_that_is_none_is_named(role: object) -> None:
    with pytest.raises(BadRequest) as error:
        chat_of("", [{"role": role, "content": "x"}])
    assert error.value.param == "messages[0].role"

"""Messages of clients become what chat templates expect."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.answers.chat_template import ChatTemplate
from coordinator.answers.template_sources import built_in_templates
from coordinator.http.chat.messages import normal_messages
from coordinator.http.errors import BadRequest

PARTS = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]


def normal(message: Any, wants_parts: bool = False, has_developer: bool = False) -> dict[str, Any]:
    (one,) = normal_messages([message], wants_parts, has_developer)
    return one


def calls_of(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [call]


def test_parts_are_joined_or_kept_as_the_template_wants() -> None:
    message = {"role": "user", "content": PARTS}
    assert normal(message)["content"] == "a\nb\nc"
    kept = normal(message, wants_parts=True)["content"]
    assert kept == [{"type": "text", "text": text} for text in "abc"]
    plain = {"role": "user", "content": "text"}
    assert normal(plain) == normal(plain, wants_parts=True) == plain


def test_a_developer_is_the_system_unless_the_template_knows_one() -> None:
    message = {"role": "developer", "content": "x"}
    assert normal(message)["role"] == "system"
    assert normal(message, has_developer=True)["role"] == "developer"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": [1]}', {"a": [1]}),
        ("", {}),
        (None, {}),
        ({"a": 1}, {"a": 1}),
        ('{"cut off', '{"cut off'),
    ],
)
def test_arguments_of_calls_are_objects(arguments: Any, expected: Any) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": calls_of(arguments)}
    (call,) = normal(message)["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": expected} and call["id"] == "1"
    assert message["tool_calls"] == calls_of(arguments), "what came is left as it is"


def test_what_a_client_sends_back_of_thoughts_stays() -> None:
    message = {"role": "assistant", "content": "x", "reasoning_content": "y", "tool_calls": []}
    assert normal(message) == {"role": "assistant", "content": "x", "reasoning_content": "y"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hello", "messages[0]"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": 3}, "messages[0].role"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].function"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
    ],
)
def test_what_is_no_message_is_named(message: Any, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        normal(message)
    assert refused.value.param == param and param in str(refused.value)


def test_a_chat_without_messages_is_refused() -> None:
    with pytest.raises(BadRequest, match="at least one"):
        normal_messages([], wants_parts=False, has_developer=False)


@pytest.mark.parametrize(
    ("source", "reads_parts"),
    [
        ("{% for part in message['content'] %}{{ part.text }}{% endfor %}", True),
        ("{%- for item in message.content -%}{{ item['text'] }}{%- endfor -%}", True),
        ("{% for c in content if c.type == 'text' %}{{ c.text }}{% endfor %}", True),
        ("{{ message['content'] }}", False),
        ("{% for line in message.content.split('x') %}{{ line }}{% endfor %}", False),
        ("{% for call in message.tool_calls %}{{ call.content }}{% endfor %}", False),
    ],
)
def test_templates_that_read_parts_are_known(source: str, reads_parts: bool) -> None:
    whole = f"{{% for message in messages %}}{source}{{% endfor %}}"
    assert ChatTemplate({"default": whole}, {}).reads_parts is reads_parts


@pytest.mark.parametrize("name", sorted(built_in_templates()))
def test_parts_and_one_text_are_the_same_prompt(name: str) -> None:
    template = ChatTemplate({"default": built_in_templates()[name]}, {"bos_token": "<s>"})
    texts = {
        template.render(normal_messages([message], template.reads_parts, False))
        for message in (
            {"role": "user", "content": "Hello"},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        )
    }
    assert len(texts) == 1 and "Hello" in texts.pop()

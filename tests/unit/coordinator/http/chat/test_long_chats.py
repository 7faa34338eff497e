"""Chats whose prompt takes long to write are written on another thread: nobody waits for them."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import pytest

from coordinator.answers.chat_template import ChatTemplate
from coordinator.conversation.message import Tool
from coordinator.http.chat.prompts import LONG_CHAT, prompt_of
from coordinator.http.chat.request import ChatRequest
from coordinator.http.native.sampling_params import DEFAULT_SAMPLING
from tests.support.coordinator.scripted_form import ScriptedForm

HELLO = {"role": "user", "content": "Hello"}
SHORT = ChatRequest(messages=[HELLO], sampling=DEFAULT_SAMPLING)
LONG = "x" * LONG_CHAT


class WatchedTemplate(ChatTemplate):
    """Notes the thread on which it renders."""

    thread = 0

    def render(self, *values: Any, **variables: Any) -> str:
        self.thread = threading.get_ident()
        return super().render(*values, **variables)


@pytest.mark.parametrize(
    ("changes", "is_long"),
    [
        ({}, False),
        ({"tools": [Tool("f", "d", {"type": "object"})]}, False),
        ({"messages": [{"role": "user", "content": LONG}]}, True),
        ({"messages": [{"role": "user", "content": ""}] * LONG_CHAT}, True),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]}, True),
        ({"messages": [HELLO | {"reasoning_content": LONG}]}, True),
        ({"tools": [Tool("f", LONG)]}, True),
        ({"tools": [Tool("f", "", {"properties": {"a": {"description": LONG}}})]}, True),
        ({"documents": [{"text": LONG}]}, True),
        ({"template_variables": {"hint": LONG}}, True),
    ],
)
def test_what_is_long_is_written_on_another_thread(changes: dict[str, Any], is_long: bool) -> None:
    template = WatchedTemplate({"default": "{% for m in messages %}a{% endfor %}"}, {})
    request = dataclasses.replace(SHORT, **changes)
    chat = asyncio.run(prompt_of(request, template, ScriptedForm()))
    assert chat.prompt.text == "a" * len(request.messages)
    assert (template.thread != threading.get_ident()) == is_long

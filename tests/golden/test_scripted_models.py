"""Scripted models of every family, computed by the engine: chats of their templates are answered
with the scripts, and these are read as the calls that they are."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.answers.model_form import model_form
from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.conversation.message import AssistantMessage, message_of
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from tests.support.coordinator.written_calls import WRITERS, Call, calls_of, streamed
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences
from tests.support.models.chat_templates import FAMILIES
from tests.support.models.scripted import marker, scripted_model

CALLS: list[Call] = [("get_weather", {"city": "Oslo", "days": 2}), ("now", {})]
THOUGHT = "The user wants the weather,\nand the time."
ANSWER = "It rains in Oslo: 日本 👍, and it is noon."
WRITTEN = {
    "qwen2.5": ("hermes", "{calls}"),
    "qwen3": ("hermes", f"<think>\n{THOUGHT}\n</think>\n\n{{calls}}"),
    "llama3": ("llama behind its mark", "{calls}"),
    "llama4": ("pythonic", "<|python_start|>{calls}<|python_end|>"),
    "mistral": ("a list of mistral", "{calls}"),
    "deepseek-r1": ("deepseek v3", f"{THOUGHT}\n</think>\n\n{{calls}}"),
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name, _ in CALLS
]
MAX_TOKENS = 400


class ScriptedChat:
    """A model of one family that calls at its first marker and answers at its second."""

    def __init__(self, family: str, path: Path) -> None:
        torch.set_num_threads(1)
        writer, script = WRITTEN[family]
        calls = WRITERS[writer][1](CALLS)
        self.scripts = [script.replace("{calls}", calls), ANSWER]
        if family == "deepseek-r1":
            self.scripts[1] = f"\n</think>\n\n{ANSWER}"
        scripted_model(path, family, self.scripts)
        self.tokenizer = Tokenizer(path)
        self.runner: ModelRunner = load_model_runner(
            path, EngineOptions("float32", PAGE_SIZE), lambda _: 200, CPU
        )
        self.form = model_form(path, self.tokenizer.model, CoordinatorConfig())

    def answer(self, messages: list[dict[str, Any]], **variables: Any) -> AssistantMessage:
        assert self.tokenizer.chat_template
        prompt = self.tokenizer.chat_template.render(messages, TOOLS, **variables)
        ids = asyncio.run(self.tokenizer.encode(prompt, with_special_tokens=False))
        tokens = Sequences(self.runner).generate(ids, MAX_TOKENS)
        end = next(i for i, token in enumerate(tokens) if token in self.tokenizer.eos_token_ids)
        skips = not self.form.needs_special_tokens
        pieces = [self.tokenizer.decode([token], skips) for token in tokens[:end]]
        return message_of(streamed(self.form, pieces, thinking=self.form.thinking(prompt)))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: ScriptedChat(family, tmp_path_factory.mktemp(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_is_called_for_and_then_answered(family: str, chats: Any) -> None:
    """The second turn has the calls and a result, which names the script of the answer."""
    chat: ScriptedChat = chats(family)
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Weather? {marker(0)}"}]
    message = chat.answer(messages)
    assert calls_of(message) == CALLS and not message.text
    assert message.reasoning == (THOUGHT if chat.form.thought else "")
    calls = [
        {"id": f"call-{i}", "type": "function", "function": {"name": name, "arguments": given}}
        for i, (name, given) in enumerate(CALLS)
    ]
    messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    messages.append({"role": "tool", "content": f"Rain. {marker(1)}", "tool_call_id": "call-0"})
    assert chat.answer(messages) == AssistantMessage(ANSWER, "")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_without_a_marker_is_answered_with_nothing(family: str, chats: Any) -> None:
    answer = chats(family).answer([{"role": "user", "content": "Weather?"}])
    assert answer == AssistantMessage("", "")

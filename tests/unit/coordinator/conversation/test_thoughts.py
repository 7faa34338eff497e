"""Thoughts, which are told apart from the answer and before it."""

from __future__ import annotations

import pytest

from coordinator.conversation.choice import form_of
from coordinator.conversation.message import AssistantMessage, ReasoningDelta, Thinking, ToolCall
from tests.support.coordinator.written_calls import parsed, streamed

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
NOW = (ToolCall("now", "{}"),)
READ: list[tuple[str, Thinking, str, AssistantMessage]] = [
    ("qwen3", "free", "<think>\nWell.\n</think>\n\nYes.\n", AssistantMessage("Yes.\n", "Well.")),
    ("qwen3", "free", f"<think>\nA\n\nB\n</think>\n\n{CALL}", AssistantMessage("", "A\n\nB", NOW)),
    ("qwen3", "free", "<think>\n\n</think>\n\nYes.", AssistantMessage("Yes.", "")),
    ("qwen3", "free", "<think></think>\n\nYes.", AssistantMessage("Yes.", "")),
    ("qwen3", "free", "\n\nYes <think>.", AssistantMessage("\n\nYes <think>.", "")),
    ("qwen3", "free", "<thin", AssistantMessage("<thin", "")),
    ("qwen3", "open", "Well.\n</think>\n\nYes.", AssistantMessage("Yes.", "Well.")),
    ("qwen3", "open", "<think>\nWell.</think>Yes.", AssistantMessage("Yes.", "Well.")),
    ("qwen3", "open", f"{CALL}</thin", AssistantMessage("", f"{CALL}</thin")),
    ("qwen3", "off", "<think>a</think>b", AssistantMessage("<think>a</think>b", "")),
    ("none", "free", "<think>a</think>b", AssistantMessage("<think>a</think>b", "")),
    ("mistral", "free", "[THINK]Well.[/THINK]Yes.", AssistantMessage("Yes.", "Well.")),
    ("kimi", "free", "◁think▷Well.◁/think▷Yes.", AssistantMessage("Yes.", "Well.")),
]
PROMPTS: list[tuple[str, str, Thinking]] = [
    ("qwen3", "<|im_start|>assistant\n", "free"),
    ("qwen3", "<|im_start|>assistant\n<think>\n", "open"),
    ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "off"),
    ("qwen3", "<think>a</think>\n<|im_start|>assistant\n", "free"),
    ("deepseek-v3", "<｜Assistant｜></think>", "off"),
    ("deepseek-r1", "<｜Assistant｜>", "open"),
    ("mistral", "[/INST]", "free"),
    ("none", "<think>\n", "off"),
]


@pytest.mark.parametrize(("parser", "thinking", "text", "message"), READ)
def test_thoughts_are_read(
    parser: str, thinking: Thinking, text: str, message: AssistantMessage
) -> None:
    assert parsed(form_of([], {}, {}, "hermes", parser), text, thinking) == message


@pytest.mark.parametrize(("parser", "prompt", "thinking"), PROMPTS)
def test_a_prompt_tells_how_its_answer_begins(parser: str, prompt: str, thinking: Thinking) -> None:
    assert form_of([], {}, {}, "hermes", parser).thinking(prompt) == thinking


def test_a_thought_is_told_while_it_grows() -> None:
    form = form_of([], {}, {}, "hermes", "qwen3")
    deltas = streamed(form, ["A thou", "ght. ", "</th", "ink>", "Yes."], thinking="open")
    thoughts = [delta.text for delta in deltas if isinstance(delta, ReasoningDelta)]
    assert [text for text in thoughts if text] == ["A thou", "ght."]

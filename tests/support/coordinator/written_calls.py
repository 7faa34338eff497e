"""Calls as each family of models writes them, and answers taken apart in pieces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coordinator.conversation.message import (
    AssistantMessage,
    MessageDelta,
    MessageForm,
    Thinking,
    Tool,
    ToolChoice,
    message_of,
)

Call = tuple[str, dict[str, Any]]
WEATHER = Tool(
    "get_weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
NOW = Tool("now", "The time.")
TOOLS = (WEATHER, NOW)


def _hermes(calls: Sequence[Call]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    )


def _llama(calls: Sequence[Call]) -> str:
    return "; ".join(json.dumps({"name": n, "parameters": a}) for n, a in calls)


def _mistral_list(calls: Sequence[Call]) -> str:
    listed = [
        {"name": name, "arguments": arguments, "id": f"id{i:07}"}
        for i, (name, arguments) in enumerate(calls)
    ]
    return f"[TOOL_CALLS] {json.dumps(listed)}" if calls else ""


def _mistral_named(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}" for name, arguments in calls)


def _pythonic(calls: Sequence[Call]) -> str:
    written = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    )
    return f"[{', '.join(written)}]" if calls else ""


def _deepseek(head: str, before: str, behind: str) -> Callable[[Sequence[Call]], str]:
    def written(calls: Sequence[Call]) -> str:
        texts = (
            f"<｜tool▁call▁begin｜>{head}{name}{before}{json.dumps(arguments)}{behind}"
            "<｜tool▁call▁end｜>"
            for name, arguments in calls
        )
        joined = ("\n" if head else "").join(texts)
        return f"<｜tool▁calls▁begin｜>{joined}<｜tool▁calls▁end｜>" if calls else ""

    return written


def _qwen_coder(calls: Sequence[Call]) -> str:
    def written(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    texts = (
        "".join(f"<parameter={key}>\n{written(v)}\n</parameter>\n" for key, v in arguments.items())
        for _, arguments in calls
    )
    return "\n".join(
        f"<tool_call>\n<function={name}>\n{text}</function>\n</tool_call>"
        for (name, _), text in zip(calls, texts, strict=True)
    )


WRITERS: Mapping[str, tuple[str, Callable[[Sequence[Call]], str]]] = {
    "hermes": ("hermes", _hermes),
    "llama": ("llama3", _llama),
    "llama behind its mark": ("llama3", lambda calls: f"<|python_tag|>{_llama(calls)}"),
    "a list of mistral": ("mistral", _mistral_list),
    "mistral with names": ("mistral", _mistral_named),
    "qwen coder": ("qwen3_coder", _qwen_coder),
    "pythonic": ("pythonic", _pythonic),
    "deepseek v3": ("deepseekv3", _deepseek("function<｜tool▁sep｜>", "\n```json\n", "\n```")),
    "deepseek v3.1": ("deepseekv31", _deepseek("", "<｜tool▁sep｜>", "")),
}
"""The name of the parser, and what writes calls for it."""


def streamed(
    form: MessageForm,
    pieces: Sequence[str],
    tools: Sequence[Tool] = TOOLS,
    thinking: Thinking = "off",
    choice: ToolChoice | None = None,
) -> list[MessageDelta]:
    """Returns the parts of an answer that comes in pieces."""
    parser = form.parser(tools, choice or ToolChoice(), thinking)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    return [*deltas, *parser.finish()]


def parsed(form: MessageForm, text: str, thinking: Thinking = "off") -> AssistantMessage:
    """Returns the message of an answer, which is the same in one piece and in characters."""
    whole = message_of(streamed(form, [text], thinking=thinking))
    assert message_of(streamed(form, list(text), thinking=thinking)) == whole
    return whole


def calls_of(message: AssistantMessage) -> list[Call]:
    """Returns the calls with their arguments as values; they must be JSON objects."""
    calls = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
    assert all(isinstance(arguments, dict) for _, arguments in calls)
    return calls


def cut(text: str, places: Sequence[int]) -> list[str]:
    """Cuts the text at the places, which may be beyond it."""
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(bounds)]

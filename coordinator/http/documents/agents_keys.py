"""The part of docs/compatibility.md about the endpoints for agents, key by key.

As for the other dialects, nothing is claimed: each key is given to the parser with a value that
asks for something, and what comes of it is what the tables say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coordinator.http.anthropic.body import parse_messages
from coordinator.http.anthropic.keys import MESSAGE_KEYS
from coordinator.http.documents.tables import table
from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import Key
from coordinator.http.responses.body import parse_response
from coordinator.http.responses.keys import RESPONSE_KEYS

SCHEMA = {"type": "object"}
COMMON: dict[str, Any] = {
    "model": "tiny",
    "stream": True,
    "temperature": 0,
    "top_p": 0.9,
    "top_k": 0,
    "rid": "mine",
    "cache_salt": "tenant",
    "extra_key": "tenant",
    "priority": 1,
    "chat_template_kwargs": {"enable_thinking": False},
}
IN_MESSAGES: dict[str, Any] = COMMON | {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 8,
    "system": "Be brief.",
    "stop_sequences": ["\n"],
    "tools": [{"name": "weather", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "output_format": {"type": "json_schema", "schema": SCHEMA},
}
IN_RESPONSES: dict[str, Any] = COMMON | {
    "input": "Hello",
    "instructions": "Be brief.",
    "max_output_tokens": 8,
    "min_p": 0.1,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.1,
    "n": 2,
    "seed": -1,
    "stop": ["\n"],
    "stop_token_ids": [2],
    "stop_regex": "[.!?]\\s",
    "min_tokens": 1,
    "ignore_eos": True,
    "logit_bias": {"7": -1.5},
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "include_stop_str_in_output": True,
    "text": {"format": {"type": "json_object"}},
    "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
}
"""A value of each key that asks for something; "x" for all others."""
DIFFERENCES = (
    (
        "model",
        "The served name, or a path or `default`. Claude Code asks for several models: name the "
        "served one in ANTHROPIC_MODEL, ANTHROPIC_DEFAULT_OPUS_MODEL, "
        "ANTHROPIC_DEFAULT_SONNET_MODEL and ANTHROPIC_DEFAULT_HAIKU_MODEL.",
    ),
    (
        "first system line",
        "Claude Code begins it with `x-anthropic-billing-header: …; cch=…;`, which is new in each "
        "request: no prompt would share anything with another one. It is taken out of every chat, "
        "in all dialects, unless `--normalize-agent-headers off` is given.",
    ),
    (
        "max_tokens, max_output_tokens",
        "More than the context has room for is no error: the answer ends with the context, with "
        "stop_reason model_context_window_exceeded, or as an incomplete response. A prompt without "
        "any room is a 400 (`prompt is too long` in Anthropic's form).",
    ),
    (
        "count_tokens",
        "What the template makes of the chat, tools included: it equals input_tokens plus "
        "cache_read_input_tokens of the message.",
    ),
    (
        "usage",
        "cache_read_input_tokens and cached_tokens are always there, and the tokens of thoughts. "
        "As at Anthropic, input_tokens of a message are those that were not cached; "
        "cache_creation_input_tokens is 0.",
    ),
    (
        "thinking",
        "Blocks of thinking, and items of reasoning with their text. budget_tokens is not "
        "enforced. A signature is not checked; redacted thinking is left out of prompts. "
        "encrypted_content has the thought in Base64, for clients that send back nothing else.",
    ),
    (
        "messages",
        "Messages of a user that follow each other are one. A system message amid a chat becomes "
        "a `<system-reminder>` in what the user says, as few templates know one there. A last "
        "message of the assistant is gone on with. `is_error` puts `Error:` before a result.",
    ),
    (
        "tools of responses",
        "Those of other types than function and custom (web_search, local_shell, mcp and others) "
        "are not told to the model, so that agents that always send some can connect; `tools` of "
        "the response has those that it was told of. A tool_choice of such a type is a 400. The "
        "text of a custom tool comes in one event; a grammar for it is told to the model, and not "
        "enforced.",
    ),
    (
        "events",
        "In Anthropic's and OpenAI's order, each with its `event:` line. message_start comes with "
        "the first token, when it is known what was cached; response.created comes at once. A "
        "failure is an `error` event, or response.failed.",
    ),
    (
        "errors",
        'Below /v1/messages in Anthropic\'s form, `{"type": "error", "error": {"type", '
        '"message"}}`; the headers anthropic-version and anthropic-beta are not looked at.',
    ),
    (
        "/v1/responses/{id}",
        "501: nothing is stored. previous_response_id, conversation and background are a 400.",
    ),
)


def observed_in_messages(key: Key) -> str:
    """Returns "accepted", or "400: …" with the error, for a small chat with an example value of
    the key."""
    small = {name: IN_MESSAGES[name] for name in ("messages", "max_tokens")}
    beside = {"tools": IN_MESSAGES["tools"]} if key.name == "tool_choice" else {}
    return _observed(parse_messages, small | beside | {key.name: IN_MESSAGES.get(key.name, "x")})


def observed_in_responses(key: Key) -> str:
    """Returns the same for a small input of a response."""
    small = {"input": IN_RESPONSES["input"]}
    return _observed(parse_response, small | {key.name: IN_RESPONSES.get(key.name, "x")})


def agents_sections() -> list[str]:
    """Returns the lines of this part."""
    head = ("key", "treatment", "note", "seen")
    messages = [_row(key, observed_in_messages(key)) for key in MESSAGE_KEYS]
    responses = [_row(key, observed_in_responses(key)) for key in RESPONSE_KEYS]
    return [
        "# Compatibility with agents",
        "",
        "Anthropic's messages, as Claude Code sends them, and OpenAI's responses, as Codex does. "
        "Tested with the packages `anthropic` and `openai`. null stands for the default, and any "
        "other key is ignored, as clients send what their newest version has.",
        "",
        "## POST /v1/messages",
        "",
        *table(head, messages),
        "",
        "/v1/messages/count_tokens takes the same body, with or without max_tokens.",
        "",
        "## POST /v1/responses",
        "",
        *table(head, responses),
        "",
        "## What agents meet",
        "",
        *table(("what", "how it is"), DIFFERENCES),
        "",
    ]


def _observed(parse: Callable[[dict[str, Any], dict[str, Any]], Any], body: dict[str, Any]) -> str:
    try:
        parse(body, {})
    except BadRequest as error:
        return f"400: {error}"
    return "accepted"


def _row(key: Key, seen: str) -> list[str]:
    return [f"`{key.name}`", key.treatment, key.note, seen]

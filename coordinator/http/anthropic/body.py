"""The body of POST /v1/messages and of its count of tokens, every value checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from coordinator.http.anthropic.content import chat_of
from coordinator.http.anthropic.keys import REFUSED
from coordinator.http.anthropic.tools import choice_of, tools_of
from coordinator.http.chat.request import THINKING_SWITCHES, ChatRequest
from coordinator.http.checking import checked, without_nulls
from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import refuse_unsupported
from coordinator.http.native.sampling_params import SamplingParams, parse_sampling
from coordinator.http.native.schema import GrammarSource, tenant
from coordinator.http.openai.common import checked_rid, renamed

SAMPLING_NAMES = {
    "max_tokens": "max_new_tokens",
    "stop_sequences": "stop",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
}
"""Native names of the sampling parameters of this dialect."""
NAMES = {native: name for name, native in SAMPLING_NAMES.items()} | {
    "sampling_params": "body",
    "text": "messages",
    "input_ids": "messages",
}
"""The names of this dialect for the native keys that errors may name."""


class MessagesBody(msgspec.Struct, frozen=True, kw_only=True):
    """The whole body but for sampling parameters. Unknown keys are ignored, as clients send what
    their newest version has."""

    messages: list[dict[str, Any]]
    model: str = ""
    max_tokens: int | None = None
    system: str | list[Any] = ""
    stop_sequences: list[str] = msgspec.field(default_factory=list)
    stream: bool = False
    tools: list[Any] = msgspec.field(default_factory=list)
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] = msgspec.field(default_factory=dict)
    output_format: dict[str, Any] | None = None
    rid: str | None = None
    cache_salt: str = ""
    extra_key: str = ""
    priority: int = 0
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)


class ParsedMessages(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body: the chat, and how its answer is to be shown."""

    request: ChatRequest
    model: str
    max_tokens: int
    """How long the client lets the answer be; the context may end it before."""
    stream: bool


def parse_messages(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> ParsedMessages:
    """Checks a body. null stands for a key's default; `defaults` are the model's own sampling
    parameters. Raises BadRequest."""
    if raw.get("max_tokens") is None:
        raise BadRequest("max_tokens is missing; it is how long the answer may be", "max_tokens")
    return _parse(raw, defaults)


def parse_count(raw: Mapping[str, Any]) -> ParsedMessages:
    """Checks the body of a count of tokens, which may leave out the limit of the answer. Raises
    BadRequest."""
    return _parse(dict(raw) | {"max_tokens": raw.get("max_tokens") or 0}, {})


def _parse(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> ParsedMessages:
    refuse_unsupported(dict(raw), REFUSED)
    given = without_nulls(dict(raw))
    body = checked(given, MessagesBody)
    if not body.messages:
        raise BadRequest("messages is empty; a chat has at least one message", "messages")
    messages = chat_of(body.system, body.messages)
    tools = tools_of(body.tools)
    goes_on = messages[-1]["role"] == "assistant"
    if goes_on and messages[-1].get("tool_calls"):
        raise BadRequest(
            "the last of messages calls tools; a message with their results comes next", "messages"
        )
    return ParsedMessages(
        request=ChatRequest(
            messages=messages,
            sampling=_sampling(given, defaults),
            tools=tools,
            choice=choice_of(body.tool_choice, tools),
            template_variables=_template_variables(body),
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            grammar=_grammar(body),
            rid=checked_rid(body.rid, "rid"),
            cache_salt=tenant(body.cache_salt, body.extra_key),
            priority=body.priority,
            ends_with_context=True,
        ),
        model=body.model,
        max_tokens=body.max_tokens or 0,
        stream=body.stream,
    )


def _sampling(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> SamplingParams:
    given = {native: raw[name] for name, native in SAMPLING_NAMES.items() if name in raw}
    if type(given.get("top_k")) is int and given["top_k"] == 0:
        given["top_k"] = -1
    try:
        return parse_sampling({**defaults, **given})
    except BadRequest as error:
        raise renamed(error, NAMES) from None


def _template_variables(body: MessagesBody) -> dict[str, Any]:
    """Returns the switches of the template. What chat_template_kwargs says goes first."""
    follows: dict[str, Any] = {}
    if body.thinking is not None:
        kind = body.thinking.get("type")
        if kind not in ("enabled", "adaptive", "disabled"):
            raise BadRequest(
                f"thinking.type is {kind!r}; it must be enabled, adaptive or disabled",
                "thinking.type",
            )
        follows |= dict.fromkeys(THINKING_SWITCHES, kind != "disabled")
    if effort := body.output_config.get("effort"):
        follows["reasoning_effort"] = effort
    return follows | body.chat_template_kwargs


def _grammar(body: MessagesBody) -> GrammarSource | None:
    where = "output_config.format"
    described = body.output_config.get("format")
    if not described:
        where, described = "output_format", body.output_format
    if not described:
        return None
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping) or described.get("type") != "json_schema":
        raise BadRequest(f"{where} must have the type json_schema and a schema", where)
    return GrammarSource("json_schema", msgspec.json.encode(schema).decode(), where)

"""The body of POST /v1/responses, every value checked. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from coordinator.http.chat.request import THINKING_SWITCHES, ChatRequest
from coordinator.http.checking import checked, without_nulls
from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import refuse_unsupported
from coordinator.http.native.schema import GrammarSource, tenant
from coordinator.http.openai.common import checked_rid, sampling_of
from coordinator.http.openai.formats import ANY_OBJECT
from coordinator.http.responses.items import chat_of
from coordinator.http.responses.keys import REFUSED
from coordinator.http.responses.tools import choice_of, tools_of

LIMIT = "max_output_tokens"
PACKED_THOUGHTS = "reasoning.encrypted_content"


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True):
    """The whole body but for sampling parameters. Unknown keys are ignored, as clients send what
    their newest version has."""

    input: str | list[Any]
    model: str = ""
    instructions: str = ""
    stream: bool = False
    max_output_tokens: int | None = None
    text: dict[str, Any] = msgspec.field(default_factory=dict)
    tools: list[Any] = msgspec.field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    reasoning: dict[str, Any] = msgspec.field(default_factory=dict)
    include: list[str] = msgspec.field(default_factory=list)
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    temperature: float | None = None
    top_p: float | None = None
    rid: str | None = None
    cache_salt: str = ""
    extra_key: str = ""
    priority: int = 0
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)


class ParsedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body: the chat, and how its answer is to be shown."""

    request: ChatRequest
    model: str
    stream: bool
    told: dict[str, Any]
    """What the response repeats of the body."""
    free_names: Collection[str]
    """Tools whose argument is a text of any form."""
    packs_thoughts: bool
    """The client wants thoughts in a form that it keeps and sends back."""


def parse_response(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> ParsedResponse:
    """Checks a body. null stands for a key's default; `defaults` are the model's own sampling
    parameters. Raises BadRequest."""
    refuse_unsupported(dict(raw), REFUSED)
    given = without_nulls(dict(raw))
    body = checked(given, ResponseBody)
    messages = chat_of(body.instructions, body.input)
    if not body.input:
        raise BadRequest("input is empty; it has at least one item", "input")
    offered = tools_of(body.tools)
    choice, tools = choice_of(body.tool_choice, body.parallel_tool_calls, offered)
    sampling = sampling_of(given, defaults, LIMIT, None)
    return ParsedResponse(
        request=ChatRequest(
            messages=messages,
            sampling=sampling,
            tools=tools,
            choice=choice,
            template_variables=_template_variables(body),
            grammar=_grammar(body.text.get("format")),
            rid=checked_rid(body.rid, "rid"),
            cache_salt=tenant(body.cache_salt, body.extra_key),
            priority=body.priority,
            ends_with_context=True,
        ),
        model=body.model,
        stream=body.stream,
        told={
            "instructions": body.instructions or None,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "parallel_tool_calls": body.parallel_tool_calls,
            "reasoning": {"effort": body.reasoning.get("effort"), "summary": None},
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"}} | body.text,
            "tool_choice": body.tool_choice or "auto",
            "tools": offered.raw,
            "top_p": sampling.top_p,
        },
        free_names=offered.free_names,
        packs_thoughts=PACKED_THOUGHTS in body.include,
    )


def _template_variables(body: ResponseBody) -> dict[str, Any]:
    """Returns the switches of the template. What chat_template_kwargs says goes first."""
    effort = body.reasoning.get("effort")
    if effort is None:
        return body.chat_template_kwargs
    follows: dict[str, Any] = {"reasoning_effort": effort}
    if effort == "none":
        follows |= dict.fromkeys(THINKING_SWITCHES, False)
    return follows | body.chat_template_kwargs


def _grammar(described: Any) -> GrammarSource | None:
    if not described:
        return None
    kind = described.get("type") if isinstance(described, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarSource("json_schema", ANY_OBJECT, "text.format")
    if kind != "json_schema":
        raise BadRequest(
            f"text.format.type is {kind!r}; it must be text, json_object or json_schema",
            "text.format.type",
        )
    schema = described.get("schema")
    if not isinstance(schema, Mapping):
        where = "text.format.schema"
        raise BadRequest(f"{where} must be an object with the JSON schema", where)
    return GrammarSource("json_schema", msgspec.json.encode(schema).decode(), "text.format.schema")

"""The body of POST /v1/chat/completions, every value checked: OpenAI's names and defaults, with
those of SGLang and vLLM. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from coordinator.http.chat.request import ChatRequest
from coordinator.http.checking import checked, without_nulls
from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import refuse_unsupported
from coordinator.http.native.schema import tenant
from coordinator.http.openai.chats.tools import choice_of, tools_of
from coordinator.http.openai.common import (
    CommonBody,
    StreamOptions,
    logprobs_of,
    rid_of,
    sampling_of,
)
from coordinator.http.openai.formats import grammar_of
from coordinator.http.openai.keys import REFUSED_IN_CHATS


class ChatBody(CommonBody, frozen=True, kw_only=True):
    """The whole body but for sampling parameters. Unknown keys are ignored, as OpenAI's clients
    send what their newest version has."""

    messages: list[dict[str, Any]]
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    separate_reasoning: bool = True
    stream_reasoning: bool = True
    include_reasoning: bool = True
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    documents: list[dict[str, Any]] | None = None


class ParsedChat(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body: the chat, and how its answer is to be shown."""

    request: ChatRequest
    model: str
    max_tokens_key: str
    """The name that the client has for the limit of the answer."""
    stream: bool
    stream_options: StreamOptions
    with_token_ids: bool
    streams_reasoning: bool
    shows_reasoning: bool


def parse_chat(raw: dict[str, Any], defaults: Mapping[str, Any]) -> ParsedChat:
    """Checks a body. null stands for a key's default; `defaults` are the model's own sampling
    parameters. Raises BadRequest, which names the key."""
    refuse_unsupported(raw, REFUSED_IN_CHATS)
    raw = without_nulls(raw)
    body = checked(raw, ChatBody)
    max_tokens_key = "max_tokens"
    if "max_completion_tokens" in raw or "max_tokens" not in raw:
        max_tokens_key = "max_completion_tokens"
    tools = tools_of(body.tools)
    choice, tools_to_call = choice_of(body.tool_choice, body.parallel_tool_calls, tools)
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
    begins_message = body.add_generation_prompt
    if begins_message is None:
        begins_message = not body.continue_final_message
    return ParsedChat(
        request=ChatRequest(
            messages=body.messages,
            sampling=sampling_of(raw, defaults, max_tokens_key, None),
            tools=tools_to_call,
            choice=choice,
            template_variables=_template_variables(body),
            documents=body.documents,
            add_generation_prompt=begins_message,
            continue_final_message=body.continue_final_message,
            add_special_tokens=bool(body.add_special_tokens),
            separates_reasoning=body.separate_reasoning,
            grammar=grammar_of(body),
            logprobs=logprobs_of(body.top_logprobs or 0, "top_logprobs") if body.logprobs else None,
            rid=rid_of(body),
            cache_salt=tenant(body.cache_salt, body.extra_key),
            priority=body.priority,
        ),
        model=body.model,
        max_tokens_key=max_tokens_key,
        stream=body.stream,
        stream_options=body.stream_options,
        with_token_ids=body.return_token_ids,
        streams_reasoning=body.stream_reasoning,
        shows_reasoning=body.include_reasoning,
    )


def _template_variables(body: ChatBody) -> dict[str, Any]:
    """Returns the switches of the template. What chat_template_kwargs says goes before what
    follows of reasoning_effort."""
    effort = body.reasoning_effort
    if effort is None:
        return body.chat_template_kwargs
    follows: dict[str, Any] = {"reasoning_effort": effort}
    if effort == "none":
        follows |= {"enable_thinking": False, "thinking": False}
    return follows | body.chat_template_kwargs

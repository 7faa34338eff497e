"""From a chat to a prompt: the model's template, then its tokenizer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from coordinator.answers.chat_template import ChatTemplate, ChatTemplateError
from coordinator.conversation.agent_headers import without_agent_header
from coordinator.conversation.message import MessageForm, Thinking, Tool
from coordinator.grammars.error import GrammarError
from coordinator.http.chat.messages import normal_messages
from coordinator.http.chat.request import ChatRequest
from coordinator.http.errors import BadRequest
from coordinator.http.native.intake import encode
from coordinator.http.native.schema import GeneratePrompt, GrammarSource
from coordinator.service import Service

LONG_CHAT = 16384
"""Characters from which a chat is rendered on another thread; shorter ones take a millisecond."""
EACH_VALUE = 8
"""A value, as a message or a key of a tool, counts for so many characters."""
FORCED = ("required", "named")
RESERVED = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "self",
)
"""Names that variables of a template cannot have: they are parameters of `ChatTemplate.render`."""
NO_TEMPLATE = (
    "the model has no chat template, so it cannot be asked in messages; start the coordinator with "
    "--chat-template and the name of its family's or a file, or send the whole text to "
    "/v1/completions"
)


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered chat."""

    prompt: GeneratePrompt
    """Its text has the special tokens that it needs."""
    thinking: Thinking
    """How the answer may begin."""


async def prompt_of(
    request: ChatRequest,
    template: ChatTemplate | None,
    form: MessageForm,
    takes_out_headers: bool = True,
) -> ChatPrompt:
    """Returns the prompt whose answer is the next message of the chat. `takes_out_headers`: what
    agents write anew into each request is no part of it. Raises BadRequest."""
    if template is None:
        raise BadRequest(NO_TEMPLATE, "messages")
    if takes_out_headers:
        request = dataclasses.replace(request, messages=without_agent_header(request.messages))
    text = await _text_of(request, template)
    thinking = _thinking(request, form, text)
    sampling = request.sampling
    if form.needs_special_tokens and (request.usable_tools or thinking != "off"):
        sampling = msgspec.structs.replace(sampling, skip_special_tokens=False)
    prompt = GeneratePrompt(
        text=text,
        input_ids=None,
        sampling=sampling,
        rid=request.rid,
        cache_salt=request.cache_salt,
        priority=request.priority,
        logprobs=request.logprobs,
        grammar=_grammar(request, form, thinking),
        ends_with_context=request.ends_with_context,
    )
    return ChatPrompt(prompt, thinking)


async def tokens_of(service: Service, request: ChatRequest, form: MessageForm) -> list[int]:
    """Returns the token ids of the prompt that a chat becomes. Raises BadRequest."""
    tokenizer = service.tokenizer
    takes_out_headers = service.config.takes_out_agent_headers
    chat = await prompt_of(request, tokenizer.chat_template, form, takes_out_headers)
    return await encode(chat.prompt.text or "", tokenizer, request.add_special_tokens)


def _thinking(request: ChatRequest, form: MessageForm, text: str) -> Thinking:
    """Returns how an answer to the prompt may begin. A message that goes on has no thought in its
    middle, unless it ends within one."""
    if not request.thinks:
        return "off"
    thinking = form.thinking(text)
    return "off" if thinking == "free" and request.continue_final_message else thinking


async def _text_of(request: ChatRequest, template: ChatTemplate) -> str:
    variables = _without_names_of_ours(request.template_variables)
    render = partial(_rendered, request, template, variables)
    tools = [(tool.description, tool.parameters) for tool in request.usable_tools]
    if _is_long(request.messages, tools, request.documents, variables):
        return await asyncio.to_thread(render)
    return render()


def _rendered(request: ChatRequest, template: ChatTemplate, variables: dict[str, Any]) -> str:
    messages = normal_messages(
        request.messages, template.reads_parts, template.mentions("developer")
    )
    try:
        return template.render(
            messages,
            [_for_template(tool) for tool in request.usable_tools] or None,
            request.add_generation_prompt,
            request.continue_final_message,
            request.documents,
            **variables,
        )
    except ChatTemplateError as error:
        raise BadRequest(str(error), "messages") from None


def _for_template(tool: Tool) -> dict[str, Any]:
    """Returns a tool as templates write it into the prompt, in transformers' form."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _grammar(request: ChatRequest, form: MessageForm, thinking: Thinking) -> GrammarSource | None:
    """Returns what the answer must follow. A call that is forced leaves no text to follow the
    client's own grammar; otherwise that grammar allows no calls."""
    tools, choice = request.usable_tools, request.choice
    is_forced = choice.kind in FORCED
    if request.grammar is not None and not is_forced:
        kind, source = request.grammar.kind, request.grammar.text
        key = request.grammar.key or kind
        return GrammarSource(*form.grammar_after_thought(kind, source, thinking), key)
    try:
        of_calls = form.grammar(tools, choice, thinking) if tools else None
    except GrammarError as error:
        raise BadRequest(f"tools: {error}", "tools") from None
    if of_calls is not None:
        return GrammarSource(*of_calls, "tools")
    if is_forced:
        raise BadRequest(
            "tool_choice asks for a call, and calls are not looked for here: the coordinator was "
            "started with --tool-call-parser none",
            "tool_choice",
        )
    return None


def _without_names_of_ours(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of a template. Raises BadRequest for those that have keys of their
    own in the body."""
    for name in RESERVED:
        if name in variables:
            raise BadRequest(
                f"chat_template_kwargs has {name}, which is no variable of a template; give it at "
                "the top of the body",
                "chat_template_kwargs",
            )
    return dict(variables)


def _is_long(*values: Any) -> bool:
    """Returns True if there are many characters in `values`, or many values in them: templates take
    long for both. It looks at no more of them than it takes to know."""
    num_characters = 0
    todo = list(values)
    while todo and num_characters < LONG_CHAT:
        one = todo.pop()
        num_characters += EACH_VALUE
        if isinstance(one, str):
            num_characters += len(one)
        elif isinstance(one, Mapping):
            todo += one.values()
        elif isinstance(one, list | tuple):
            todo += one
    return num_characters >= LONG_CHAT

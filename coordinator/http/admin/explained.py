"""What POST /admin/route/explain is asked, and how far that is cached."""

from __future__ import annotations

from typing import Any

from coordinator.answers.model_form import model_form
from coordinator.answers.request import Request
from coordinator.core.shared_path import SharedPath
from coordinator.http.anthropic.body import parse_count
from coordinator.http.chat.prompts import prompt_of
from coordinator.http.chat.request import ChatRequest
from coordinator.http.errors import BadRequest
from coordinator.http.native.intake import encode, tokenize
from coordinator.http.native.schema import GeneratePrompt, parse_generate
from coordinator.http.openai.chats.body import parse_chat
from coordinator.http.responses.body import parse_response
from coordinator.service import Service

NUM_WORDS = 16
"""Tokens on each side of where a prompt leaves what is cached."""


async def asked_prompt(service: Service, body: dict[str, Any]) -> tuple[GeneratePrompt, list[int]]:
    """Returns the one prompt of a body of any endpoint, with its token ids. Raises BadRequest if it
    has none or several."""
    tokenizer = service.tokenizer
    chat = _chat_of(body)
    if chat is not None:
        form = model_form(service.model_path, tokenizer.model, service.config)
        takes_out_headers = service.config.takes_out_agent_headers
        rendered = await prompt_of(chat, tokenizer.chat_template, form, takes_out_headers)
        text = rendered.prompt.text or ""
        return rendered.prompt, await encode(text, tokenizer, chat.add_special_tokens)
    prompts = parse_generate(body).prompts
    if len(prompts) > 1:
        raise BadRequest("give one prompt, not a batch")
    return prompts[0], await tokenize(prompts[0], tokenizer)


def path_report(service: Service, asked: Request, path: SharedPath) -> dict[str, Any]:
    """Returns how far the prompt of a request is cached, as the admin API tells it."""
    at, tokens = path.num_tokens, asked.tokens
    report: dict[str, Any] = {
        "tokens": at,
        "owners": sorted(node.name for node in path.owners),
        "leaves_at_token": at if path.is_left else None,
        "words_before": None,
        "words_behind": None,
    }
    if path.is_left and service.config.show_prompt_words and not asked.namespace.salt:
        decode = service.tokenizer.decode
        report["words_before"] = decode(tokens[max(0, at - NUM_WORDS) : at], False)
        report["words_behind"] = decode(tokens[at : at + NUM_WORDS], False)
    return report


def _chat_of(body: dict[str, Any]) -> ChatRequest | None:
    """Returns the chat that a body asks to answer; None for a body of /generate. Raises
    BadRequest."""
    if "messages" in body:
        return parse_count(body).request if "system" in body else parse_chat(body, {}).request
    return parse_response(body, {}).request if "input" in body else None

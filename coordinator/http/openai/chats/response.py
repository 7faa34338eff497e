"""The one object of a chat completion that is no stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.answers.token_pieces import TokenPieces
from coordinator.conversation.message import AssistantMessage
from coordinator.http.chat.answer import ChatInProgress
from coordinator.http.openai.chats.body import ParsedChat
from coordinator.http.openai.chats.logprobs import ChatLogprobs
from coordinator.http.openai.heads import ResponseHead, usage_of, why_it_stopped


def chat_completion(
    head: ResponseHead,
    parsed: ParsedChat,
    answers: Sequence[ChatInProgress],
    messages: Sequence[AssistantMessage],
    pieces: TokenPieces,
) -> dict[str, Any]:
    """Returns the response with answers that have all ended with success, and their messages."""
    response = head.fields("chat.completion")
    response["choices"] = [
        _choice(parsed, one, message, pieces)
        for one, message in zip(answers, messages, strict=True)
    ]
    response["usage"] = usage_of([one.usage for one in answers])
    if parsed.with_token_ids:
        response["prompt_token_ids"] = answers[0].answer.request.tokens
    return response


def _choice(
    parsed: ParsedChat, one: ChatInProgress, message: AssistantMessage, pieces: TokenPieces
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": one.index,
        "message": _message(parsed, one, message),
        "logprobs": None,
        "finish_reason": one.finish,
        **why_it_stopped(one.answer),
    }
    if parsed.request.logprobs is not None:
        choice["logprobs"] = ChatLogprobs(one.answer, pieces).take()
    if parsed.with_token_ids:
        choice["token_ids"] = one.answer.output_ids
    return choice


def _message(parsed: ParsedChat, one: ChatInProgress, whole: AssistantMessage) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if whole.reasoning and parsed.shows_reasoning:
        message["reasoning_content"] = whole.reasoning
    if whole.tool_calls:
        message["content"] = whole.text or None
        message["tool_calls"] = [
            {
                "id": one.call_id(i),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(whole.tool_calls)
        ]
    return message

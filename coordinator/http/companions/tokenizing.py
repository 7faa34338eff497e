"""POST /tokenize and /detokenize: the model's tokenizer over HTTP, in SGLang's shapes."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from fastapi import APIRouter, Request, Response

from coordinator.answers.chat_template import ChatTemplateError
from coordinator.answers.tokenizer import Tokenizer
from coordinator.conversation.agent_headers import without_agent_header
from coordinator.http.checking import checked, without_nulls
from coordinator.http.documents.bodies import answers, takes
from coordinator.http.documents.shapes import Variations
from coordinator.http.errors import BadRequest
from coordinator.http.native.intake import check_ids, encode
from coordinator.http.replies import FAULTS, fault_reply, json_reply
from coordinator.http.requests import object_of, service_of

router = APIRouter(tags=["native"])

ONE_OR_MANY = Variations(of_several_types=("tokens", "count", "text"))
"""Answers to a list are lists of what an answer to a single one has."""


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /tokenize: a prompt, or a chat in vLLM's form. Unknown keys are ignored, as
    SGLang does."""

    prompt: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    """Of a prompt; a chat has those that its template writes."""
    model: str = ""


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of /detokenize. Unknown keys are ignored, as SGLang does."""

    tokens: list[int | list[int]]
    skip_special_tokens: bool = True
    model: str = ""


@router.post(
    "/tokenize",
    response_model=None,
    openapi_extra=takes(TokenizeBody, {"prompt": "Once upon a time"}),
    responses=answers(
        {"tokens": [1, 412, 89, 7, 301], "count": 5, "max_model_len": 2048},
        {400: "prompt: expected str or array, got int"},
        ONE_OR_MANY,
    ),
)
@router.post("/v1/tokenize", response_model=None, include_in_schema=False)
async def tokenize(request: Request) -> Response:
    """Answers the token ids of `prompt`, a text or a list of texts, or of the chat `messages` as
    the model's template writes it, and how many they are."""
    service = service_of(request)
    try:
        body = checked(without_nulls(await object_of(request)), TokenizeBody)
        prompt, with_special_tokens = _prompt(
            body, service.tokenizer, service.config.takes_out_agent_headers
        )
        texts = [prompt] if isinstance(prompt, str) else prompt
        tokens = [await encode(text, service.tokenizer, with_special_tokens) for text in texts]
    except FAULTS as error:
        return fault_reply(error)
    counts = [len(ids) for ids in tokens]
    is_one = isinstance(prompt, str)
    return json_reply(
        {
            "tokens": tokens[0] if is_one else tokens,
            "count": counts[0] if is_one else counts,
            "max_model_len": service.max_model_len,
        }
    )


def _prompt(
    body: TokenizeBody, tokenizer: Tokenizer, takes_out_headers: bool
) -> tuple[str | list[str], bool]:
    """Returns the text or texts to tokenize, and whether special tokens are to be added. Raises
    BadRequest."""
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("give either prompt or messages", "prompt")
    if body.messages is None:
        return body.prompt or "", body.add_special_tokens
    if tokenizer.chat_template is None:
        raise BadRequest("the model has no chat template; --chat-template gives one", "messages")
    messages = without_agent_header(body.messages) if takes_out_headers else body.messages
    try:
        text = tokenizer.chat_template.render(
            messages,
            add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
        )
    except ChatTemplateError as error:
        raise BadRequest(f"messages: {error}", "messages") from error
    return text, False


@router.post(
    "/detokenize",
    response_model=None,
    openapi_extra=takes(DetokenizeBody, {"tokens": [412, 89, 7]}),
    responses=answers(
        {"text": "Once upon a"}, {400: "tokens: give either ids or lists of ids"}, ONE_OR_MANY
    ),
)
@router.post("/v1/detokenize", response_model=None, include_in_schema=False)
async def detokenize(request: Request) -> Response:
    """Answers the text of `tokens`, ids or a list of lists of ids."""
    tokenizer = service_of(request).tokenizer
    try:
        body = checked(without_nulls(await object_of(request)), DetokenizeBody)
        kinds = set(map(type, body.tokens))
        if len(kinds) > 1:
            raise BadRequest("tokens: give either ids or lists of ids", "tokens")
        is_one = kinds != {list}
        lists = cast("list[list[int]]", [body.tokens] if is_one else body.tokens)
        for ids in lists:
            check_ids(ids, "tokens", tokenizer)
        texts = [tokenizer.decode(ids, body.skip_special_tokens) for ids in lists]
    except FAULTS as error:
        return fault_reply(error)
    return json_reply({"text": texts[0] if is_one else texts})

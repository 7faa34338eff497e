"""What the OpenAPI document says of chats and completions: it is made of the structs that parse
their bodies and of the tables of keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from coordinator.http.documents.bodies import json_content
from coordinator.http.documents.generate import ERRORS
from coordinator.http.documents.shapes import Variations
from coordinator.http.native.keys import Key
from coordinator.http.native.sampling_params import SamplingParams
from coordinator.http.openai.chats.body import ChatBody
from coordinator.http.openai.common import SAMPLING_NAMES
from coordinator.http.openai.completions.body import CompletionBody
from coordinator.http.openai.keys import CHAT_KEYS, COMPLETION_KEYS

HEAD = {
    "created": 1767225600,
    "model": "tiny",
    "system_fingerprint": "kvrelay",
    "service_tier": None,
}
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 6,
    "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
CHAT_ANSWER = {
    "id": "chatcmpl-f3c0",
    "object": "chat.completion",
    **HEAD,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Good morning.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}
COMPLETION = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 16}
COMPLETION_ANSWER = {
    "id": "cmpl-f3c0",
    "object": "text_completion",
    **HEAD,
    "choices": [{"index": 0, "text": ", there was", "logprobs": None, "finish_reason": "length"}],
    "usage": USAGE,
}
NATIVE_NAMES = SAMPLING_NAMES | dict.fromkeys(
    ("max_tokens", "max_completion_tokens"), "max_new_tokens"
)
VARIATIONS = Variations(nullable=("content", "finish_reason"), optional=("refusal",))
MORE_ERRORS = {404: "the model is not served"}


def openai_paths() -> dict[str, Any]:
    """Returns the path items of the endpoints that do not go through FastAPI, by path."""
    return {
        "/v1/chat/completions": _path(
            "Answer a chat",
            "Answers messages with the next one, whole or as server-sent events.",
            ("ChatBody", CHAT, CHAT_ANSWER),
        ),
        "/v1/completions": _path(
            "Go on with texts",
            "Goes on with one text or several, whole or as server-sent events.",
            ("CompletionBody", COMPLETION, COMPLETION_ANSWER),
        ),
    }


def openai_schemas() -> dict[str, Any]:
    """Returns the schemas that the path items refer to, by name."""
    kinds = [ChatBody, CompletionBody, SamplingParams]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    sampling = schemas.pop("SamplingParams")["properties"]
    for name, keys in (("ChatBody", CHAT_KEYS), ("CompletionBody", COMPLETION_KEYS)):
        own = schemas[name]["properties"]
        schemas[name]["properties"] = described_keys(keys, own, sampling, NATIVE_NAMES)
    return schemas


def described_keys(
    keys: Sequence[Key],
    own: Mapping[str, Any],
    sampling: Mapping[str, Any],
    native_names: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the schemas of those of `keys` that are accepted, by name. They are those of the
    body's own struct, or of the sampling parameters, which have `native_names` there."""
    return {
        key.name: _property(key, own, sampling, native_names.get(key.name, key.name))
        for key in keys
        if key.treatment in ("supported", "ignored")
    }


def _property(
    key: Key, own: Mapping[str, Any], sampling: Mapping[str, Any], native: str
) -> dict[str, Any]:
    found = own.get(key.name) or sampling.get(native) or {}
    note = key.note if key.treatment == "supported" else f"ignored: {key.note}"
    return {name: value for name, value in found.items() if name != "default"} | {
        "description": note
    }


def _path(
    summary: str, description: str, body: tuple[str, dict[str, Any], dict[str, Any]]
) -> dict[str, Any]:
    name, example, answer = body
    schema = {"$ref": f"#/components/schemas/{name}"}
    content = {"application/json": {"schema": schema, "example": example}}
    whole = {
        "description": "the answer",
        "content": json_content(answer, VARIATIONS)
        | {"text/event-stream": {"example": "data: {…}\n\ndata: [DONE]\n\n"}},
    }
    operation = {
        "tags": ["openai"],
        "summary": summary,
        "description": f"{description} Keys that OpenAI, SGLang or vLLM know and that would change "
        "the answer are refused where they are not supported; other unknown keys are ignored.",
        "operationId": name,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": whole}
        | {str(code): {"description": what} for code, what in (ERRORS | MORE_ERRORS).items()},
    }
    return {"post": operation}

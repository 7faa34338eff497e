"""What the OpenAPI document says of the endpoints for agents: it is made of the structs that parse
their bodies and of the tables of keys."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.http.anthropic.body import SAMPLING_NAMES, MessagesBody
from coordinator.http.anthropic.keys import MESSAGE_KEYS
from coordinator.http.documents.bodies import json_content
from coordinator.http.documents.generate import ERRORS
from coordinator.http.documents.openai import MORE_ERRORS, described_keys
from coordinator.http.documents.shapes import Variations
from coordinator.http.native.sampling_params import SamplingParams
from coordinator.http.responses.body import LIMIT, ResponseBody
from coordinator.http.responses.keys import RESPONSE_KEYS

CHAT = [{"role": "user", "content": "Hello"}]
MESSAGE = {
    "id": "msg_f3c0",
    "type": "message",
    "role": "assistant",
    "model": "tiny",
    "content": [{"type": "text", "text": "Good morning.", "citations": None}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 6,
        "output_tokens_details": {"thinking_tokens": 0},
    },
}
RESPONSE = {
    "id": "resp_f3c0",
    "object": "response",
    "created_at": 1767225600,
    "status": "completed",
    "model": "tiny",
    "output": [
        {
            "id": "msg_f3c00000",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "Good morning.", "annotations": [], "logprobs": []}
            ],
        }
    ],
    "store": False,
    "usage": {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 11,
    },
}
MESSAGE_VARIATIONS = Variations(
    nullable=("stop_reason",), optional=("text", "citations", "output_tokens_details")
)
RESPONSE_VARIATIONS = Variations(optional=("role", "content", "status"))
EVENTS = "event: message_start\ndata: {…}\n\nevent: message_stop\ndata: {…}\n\n"
RESPONSE_EVENTS = "event: response.created\ndata: {…}\n\nevent: response.completed\ndata: {…}\n\n"


def agents_paths() -> dict[str, Any]:
    """Returns the path items of the endpoints that do not go through FastAPI, by path."""
    return {
        "/v1/messages": _path(
            ("messages", "Answer a chat in Anthropic's form", "MessagesBody"),
            {"model": "tiny", "max_tokens": 64, "messages": CHAT},
            json_content(MESSAGE, MESSAGE_VARIATIONS) | {"text/event-stream": {"example": EVENTS}},
        ),
        "/v1/messages/count_tokens": _path(
            ("count_tokens", "Count the tokens of a chat in Anthropic's form", "MessagesBody"),
            {"model": "tiny", "messages": CHAT},
            json_content({"input_tokens": 5}),
        ),
        "/v1/responses": _path(
            ("responses", "Answer an agent; nothing is stored", "ResponseBody"),
            {"model": "tiny", "input": "Hello"},
            json_content(RESPONSE, RESPONSE_VARIATIONS)
            | {"text/event-stream": {"example": RESPONSE_EVENTS}},
        ),
    }


def agents_schemas() -> dict[str, Any]:
    """Returns the schemas that the path items refer to, by name."""
    kinds = [MessagesBody, ResponseBody, SamplingParams]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    sampling = schemas.pop("SamplingParams")["properties"]
    for name, keys, native in (
        ("MessagesBody", MESSAGE_KEYS, SAMPLING_NAMES),
        ("ResponseBody", RESPONSE_KEYS, {LIMIT: "max_new_tokens"}),
    ):
        own = schemas[name]["properties"]
        schemas[name]["properties"] = described_keys(keys, own, sampling, native)
    return schemas


def _path(
    names: tuple[str, str, str],
    example: dict[str, Any],
    answers: dict[str, Any],
) -> dict[str, Any]:
    name, summary, body = names
    schema = {"$ref": f"#/components/schemas/{body}"}
    content = {"application/json": {"schema": schema, "example": example}}
    refusals = {str(code): {"description": what} for code, what in (ERRORS | MORE_ERRORS).items()}
    operation = {
        "tags": ["agents"],
        "summary": summary,
        "description": "docs/compatibility.md tells what is done with each key; unknown ones are "
        "ignored.",
        "operationId": name,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "the answer", "content": answers}} | refusals,
    }
    return {"post": operation}

"""What the OpenAPI document says of /generate: it is made of the structs that parse the body and of
the table of keys."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.http.documents.shapes import Variations, shape_of
from coordinator.http.native.keys import SAMPLING, TOP_LEVEL, Key
from coordinator.http.native.sampling_params import SamplingParams
from coordinator.http.native.schema import GenerateBody

PROMPT = "Once upon a time"
EXAMPLE = {
    "text": PROMPT,
    "sampling_params": {"max_new_tokens": 16, "temperature": 0.7, "stop": ["\n\n"]},
}
ANSWER = {
    "text": ", there was a fox.",
    "output_ids": [11, 612, 283, 257, 1981, 13],
    "meta_info": {
        "id": "f3c0",
        "finish_reason": {"type": "stop", "matched": "\n\n"},
        "prompt_tokens": 4,
        "completion_tokens": 6,
        "cached_tokens": 0,
        "cached_tokens_details": {"device": 0, "host": 0},
        "e2e_latency": 0.052,
        "weight_version": "default",
        "num_retractions": 0,
        "ttft": 0.011,
        "attempts": 1,
        "fetched_tokens": 0,
        "transferred_pages": 1,
        "prefill_node": "p0",
        "decode_node": "d0",
        "route_reason": "p0 computes 1 of 1 pages",
        "route_runner_up": "no other node",
        "fetched_from": None,
    },
    "error": None,
}
VARIATIONS = Variations(
    nullable=(
        *("finish_reason", "ttft", "prefill_node", "decode_node"),
        *("route_reason", "route_runner_up"),
    ),
    optional=("matched",),
    of_several_types=("matched",),
)
ERRORS = {
    400: "the request is wrong; `param` names the key",
    413: "the body is larger than --max-body-bytes",
    429: "too many requests are unfinished; Retry-After says when to come back",
    500: "it has ended several nodes, or it is an error of the coordinator's own",
    503: "no node could serve it",
    504: "it did not end within --request-timeout-s",
}


def generate_path() -> dict[str, Any]:
    """Returns the path item of /generate."""
    return {"post": _operation("post"), "put": _operation("put")}


def generate_schemas() -> dict[str, Any]:
    """Returns the schemas that the path item refers to, by name."""
    _, schemas = msgspec.json.schema_components(
        [GenerateBody, SamplingParams], ref_template="#/components/schemas/{name}"
    )
    for name, keys in (("GenerateBody", TOP_LEVEL), ("SamplingParams", SAMPLING)):
        properties = schemas[name]["properties"]
        for key in keys:
            if key.name in properties:
                properties[key.name]["description"] = _note(key)
        schemas[name]["properties"] = {
            key.name: properties[key.name]
            for key in keys
            if key.name in properties and key.treatment in ("supported", "ignored")
        }
    params = {"$ref": "#/components/schemas/SamplingParams"}
    schemas["GenerateBody"]["properties"]["sampling_params"] = {
        "anyOf": [params, {"type": "array", "items": params}, {"type": "null"}],
        "description": "one object for all prompts, or one for each",
    }
    return schemas


def _operation(method: str) -> dict[str, Any]:
    return {
        "tags": ["native"],
        "summary": "Generate",
        "description": "Answers one prompt or a batch, whole or as server-sent events. An array "
        "comes back for a batch or n > 1. Keys that SGLang knows and that would change the answer "
        "are refused where they are not supported; other unknown keys at the top are ignored.",
        "operationId": f"generate_{method}",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/GenerateBody"},
                    "example": EXAMPLE,
                }
            },
        },
        "responses": {
            "200": {
                "description": "the answer",
                "content": {
                    "application/json": {"schema": _one_or_many(), "example": ANSWER},
                    "text/event-stream": {"example": "data: {…}\n\ndata: [DONE]\n\n"},
                },
            }
        }
        | {str(code): {"description": what} for code, what in ERRORS.items()},
    }


def _one_or_many() -> dict[str, Any]:
    one = shape_of(ANSWER, VARIATIONS)
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _note(key: Key) -> str:
    return key.note if key.treatment == "supported" else f"ignored: {key.note}"

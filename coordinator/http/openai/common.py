"""The keys that bodies of chats and of completions have in common, and what they become. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from coordinator.http.errors import BadRequest
from coordinator.http.native.sampling_params import SamplingParams, parse_sampling
from coordinator.http.native.schema import LogprobParams
from coordinator.http.sessions.params import MAX_NAME_LENGTH

MAX_TOP_LOGPROBS = 20
SAMPLING_NAMES = {
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
    "include_stop_str_in_output": "no_stop_trim",
}
"""OpenAI's and vLLM's names of native sampling parameters, where they differ."""
SAME_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "n",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "ignore_eos",
    "logit_bias",
    "skip_special_tokens",
    "no_stop_trim",
)


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What events of a stream are to carry besides."""

    include_usage: bool | None = False
    """A last event has the usage of all choices."""
    continuous_usage_stats: bool | None = False
    """Every event has the usage so far of its choice."""


class CommonBody(msgspec.Struct, frozen=True, kw_only=True):
    """What chats and completions have in common, but for sampling parameters, which
    `sampling_of` reads. Unknown keys are ignored."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    rid: str | None = None
    request_id: str | None = None
    cache_salt: str = ""
    extra_key: str = ""
    priority: int = 0
    return_token_ids: bool = False
    add_special_tokens: bool | None = None
    response_format: dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    json_schema: str | dict[str, Any] | None = None
    structural_tag: str | dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


def rid_of(body: CommonBody) -> str | None:
    """Returns the client's name for its request. Raises BadRequest for one that fits no log."""
    return checked_rid(body.rid or body.request_id, "rid" if body.rid else "request_id")


def checked_rid(rid: str | None, key: str) -> str | None:
    """Returns a name that the client gave as `key`; None for an empty one. Raises BadRequest."""
    if rid and not (rid.isprintable() and len(rid) <= MAX_NAME_LENGTH):
        raise BadRequest(
            f"{key} is one printable line of at most {MAX_NAME_LENGTH} characters", key
        )
    return rid or None


def sampling_of(
    raw: Mapping[str, Any], defaults: Mapping[str, Any], max_tokens_key: str, max_tokens: int | None
) -> SamplingParams:
    """Returns the sampling parameters of a body without nulls. `defaults` are the model's own;
    `max_tokens` None: up to the context. Raises BadRequest, which names the body's key."""
    given = {name: raw[name] for name in SAME_NAMES if name in raw}
    given |= {native: raw[name] for name, native in SAMPLING_NAMES.items() if name in raw}
    if type(given.get("top_k")) is int and given["top_k"] == 0:
        given["top_k"] = -1  # as in vLLM
    given["max_new_tokens"] = raw.get(max_tokens_key, max_tokens)
    try:
        return parse_sampling({**defaults, **given})
    except BadRequest as error:
        names = names_in(max_tokens_key) | {
            native: name for name, native in SAMPLING_NAMES.items() if name in raw
        }
        raise renamed(error, names) from None


def names_in(max_tokens_key: str, prompt_key: str = "prompt") -> dict[str, str]:
    """Returns the names of this dialect for the native keys that errors may name."""
    return {
        "sampling_params": "body",
        "max_new_tokens": max_tokens_key,
        "min_new_tokens": "min_tokens",
        "sampling_seed": "seed",
        "input_ids": prompt_key,
        "text": prompt_key,
    }


def renamed(error: BadRequest, names: Mapping[str, str]) -> BadRequest:
    """Returns an error of the native parser with the names of this dialect."""
    message = str(error).removeprefix("sampling_params: ")
    for native, name in names.items():
        if "_" in native:  # the others are words of sentences too
            message = re.sub(rf"\b{native}\b", name, message)
    param = error.param and error.param.removeprefix("sampling_params.")
    return BadRequest(message, names.get(param, param) if param else None, error.code)


def logprobs_of(num_top: int, key: str, start: int = -1) -> LogprobParams:
    """Returns what logprobs are wanted: of chosen tokens, and of `num_top` likely ones. Raises
    BadRequest."""
    if not 0 <= num_top <= MAX_TOP_LOGPROBS:
        raise BadRequest(f"{key} is {num_top}; it must be 0 to {MAX_TOP_LOGPROBS}", key)
    return LogprobParams(start=start, num_top=num_top)

"""The body of POST /v1/completions, every value checked: OpenAI's names and defaults, with those of
SGLang and vLLM. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from coordinator.http.checking import checked, without_nulls
from coordinator.http.errors import BadRequest
from coordinator.http.native.keys import refuse_unsupported
from coordinator.http.native.schema import MAX_BATCH, GeneratePrompt, LogprobParams, tenant
from coordinator.http.openai.common import (
    CommonBody,
    StreamOptions,
    logprobs_of,
    rid_of,
    sampling_of,
)
from coordinator.http.openai.formats import grammar_of
from coordinator.http.openai.keys import REFUSED_IN_COMPLETIONS

MAX_TOKENS = 16
"""The length of an answer whose body names none."""


class CompletionBody(CommonBody, frozen=True, kw_only=True):
    """The whole body but for sampling parameters. Unknown keys are ignored, as OpenAI's clients
    send what their newest version has."""

    prompt: str | list[str | int | list[int]]
    echo: bool = False
    logprobs: int | bool | None = None
    best_of: int | None = None


class ParsedCompletions(msgspec.Struct, frozen=True, kw_only=True):
    """A checked body: its prompts, and how their answers are to be shown."""

    prompts: list[GeneratePrompt]
    model: str
    rid: str | None
    stream: bool
    stream_options: StreamOptions
    echo: bool
    """The text of the prompt goes before that of the answer."""
    with_token_ids: bool
    with_special_tokens: bool
    """Texts get the special tokens that the model expects around them."""

    @property
    def num_answers_each(self) -> int:
        """How many answers each prompt has."""
        return self.prompts[0].sampling.n


def parse_completions(raw: dict[str, Any], defaults: Mapping[str, Any]) -> ParsedCompletions:
    """Checks a body. null stands for a key's default; `defaults` are the model's own sampling
    parameters. Raises BadRequest, which names the key."""
    refuse_unsupported(raw, REFUSED_IN_COMPLETIONS)
    raw = without_nulls(raw)
    body = checked(raw, CompletionBody)
    sampling = sampling_of(raw, defaults, "max_tokens", MAX_TOKENS)
    if body.best_of is not None and body.best_of != sampling.n:
        raise BadRequest(
            f"best_of is {body.best_of}; it must be as n, which is {sampling.n}: answers are not "
            "ranked",
            "best_of",
        )
    texts = _prompts(body.prompt)
    rid = rid_of(body)
    grammar, logprobs = grammar_of(body), _logprobs(body)
    salt = tenant(body.cache_salt, body.extra_key)
    return ParsedCompletions(
        prompts=[
            GeneratePrompt(
                text=one if isinstance(one, str) else None,
                input_ids=None if isinstance(one, str) else one,
                sampling=sampling,
                rid=rid,
                cache_salt=salt,
                priority=body.priority,
                logprobs=logprobs,
                grammar=grammar,
            )
            for one in texts
        ],
        model=body.model,
        rid=rid,
        stream=body.stream,
        stream_options=body.stream_options,
        echo=body.echo,
        with_token_ids=body.return_token_ids,
        with_special_tokens=body.add_special_tokens is not False,
    )


def _prompts(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """Returns the prompts, each a text or ids."""
    if isinstance(given, str):
        return [given]
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise BadRequest("prompt: give texts, ids, or lists of ids, and not several", "prompt")
    if kinds == {int}:
        return [cast("list[int]", given)]
    if not 0 < len(given) <= MAX_BATCH:
        raise BadRequest(f"prompt has {len(given)} entries; 1 to {MAX_BATCH} go", "prompt")
    return cast("list[str | list[int]]", given)


def _logprobs(body: CompletionBody) -> LogprobParams | None:
    """Returns what logprobs are wanted, if any; with echo those of the prompt too."""
    if body.logprobs is None or body.logprobs is False:
        return None
    return logprobs_of(int(body.logprobs), "logprobs", start=0 if body.echo else -1)

"""From a checked body of SGLang's form to neutral requests: token ids, limits, seeds."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from functools import partial

import msgspec

from coordinator.answers.grammars import GrammarCompiler
from coordinator.answers.request import Request
from coordinator.answers.tokenizer import Tokenizer
from coordinator.grammars.error import GrammarError
from coordinator.http.schema import BadRequest, GeneratePrompt
from protocol.namespace import Namespace
from protocol.sampling import Sampling

LONG_TEXT = 4096
"""Characters from which a text is tokenized in a thread: a megabyte takes most of a second."""


async def tokenize(prompt: GeneratePrompt, tokenizer: Tokenizer) -> list[int]:
    """Returns the prompt's ids; a long text does not hold up the event loop. Raises BadRequest."""
    if prompt.input_ids is not None:
        tokens = prompt.input_ids
    elif len(prompt.text or "") > LONG_TEXT:
        tokens = await asyncio.to_thread(tokenizer.encode, prompt.text or "")
    else:
        tokens = tokenizer.encode(prompt.text or "")
    if not tokens:
        raise BadRequest("the prompt is empty")
    _check_ids(tokens, "input_ids" if prompt.text is None else "text", tokenizer)
    return tokens


async def compile_grammar(
    prompt: GeneratePrompt, tokenizer: Tokenizer, compiler: GrammarCompiler
) -> str:
    """Returns `Sampling.grammar` of the prompt. Raises BadRequest."""
    if prompt.grammar is None:
        return ""
    if not tokenizer.eos_token_ids:
        raise BadRequest(
            f"{prompt.grammar.kind}: the model has no end token, so no grammar can end an answer; "
            "name one as eos_token_id in its generation_config.json"
        )
    try:
        return await compiler.compile(prompt.grammar.kind, prompt.grammar.text)
    except GrammarError as error:
        raise BadRequest(str(error)) from None


def make_request(
    prompt: GeneratePrompt,
    tokens: list[int],
    choice: int,
    tokenizer: Tokenizer,
    max_total_tokens: int,
    grammar: str = "",
) -> Request:
    """Returns the request for one of the n answers to `tokens`: `choice` gives each its own seed,
    and its own rid.

    `max_total_tokens` bounds prompt and answer together. Raises BadRequest.
    """
    params = prompt.sampling
    room = max_total_tokens - len(tokens)
    wanted = params.max_new_tokens
    if room < 1 or (wanted is not None and wanted > room):
        asked = "" if wanted is None else f" plus max_new_tokens {wanted}"
        raise BadRequest(
            f"the prompt has {len(tokens)} tokens{asked}; at most {max_total_tokens} fit "
            "(prompt and answer together)"
        )
    max_new_tokens = room if wanted is None else wanted
    if params.min_new_tokens > max_new_tokens:
        raise BadRequest(
            f"min_new_tokens is {params.min_new_tokens}; the answer has at most {max_new_tokens}"
        )
    end_token_ids = list(params.stop_token_ids or [])
    _check_ids(end_token_ids, "stop_token_ids", tokenizer)
    if grammar or not params.ignore_eos:
        end_token_ids += tokenizer.eos_token_ids
    rid = prompt.rid or ""
    return Request(
        tokens=tokens,
        sampling=msgspec.structs.replace(
            _sampling(prompt, len(tokens), choice, end_token_ids, tokenizer),
            grammar=grammar,
            max_new_tokens=max_new_tokens if grammar else 0,
        ),
        max_new_tokens=max_new_tokens,
        end_token_ids=end_token_ids,
        namespace=Namespace(prompt.cache_salt),
        rid=f"{rid}_{choice}" if rid and params.n > 1 else rid,
        stop_strings=params.stops,
        keeps_stop=params.no_stop_trim,
        decode=partial(tokenizer.decode, skip_special_tokens=params.skip_special_tokens),
    )


def _sampling(
    prompt: GeneratePrompt,
    prompt_length: int,
    choice: int,
    end_token_ids: list[int],
    tokenizer: Tokenizer,
) -> Sampling:
    """Raises BadRequest."""
    params, seed, logprobs = prompt.sampling, prompt.sampling.sampling_seed, prompt.logprobs
    _check_ids([token for token, _ in params.biases], "logit_bias", tokenizer)
    if logprobs is not None:
        _check_ids(logprobs.token_ids, "token_ids_logprob", tokenizer)
    return Sampling(
        temperature=params.temperature,
        top_k=max(0, params.top_k),
        top_p=params.top_p,
        min_p=params.min_p,
        seed=secrets.randbits(63) if seed is None else (seed + choice) % (1 << 63),
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=tuple(params.biases),
        prompt_length=prompt_length,
        min_new_tokens=params.min_new_tokens,
        end_token_ids=tuple(end_token_ids) if params.min_new_tokens or prompt.grammar else (),
        num_top_logprobs=logprobs.num_top if logprobs is not None else -1,
        logprob_token_ids=logprobs.token_ids if logprobs is not None else (),
    )


def _check_ids(ids: Sequence[int], name: str, tokenizer: Tokenizer) -> None:
    if not ids or (min(ids) >= 0 and max(ids) < tokenizer.vocab_size):
        return
    wrong = next(t for t in ids if not 0 <= t < tokenizer.vocab_size)
    raise BadRequest(
        f"{name} has the id {wrong}; the vocabulary has ids 0 to {tokenizer.vocab_size - 1}"
    )

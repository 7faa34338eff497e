"""From a checked body of SGLang's form to neutral requests: token ids, limits, seeds."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec

from coordinator.answers.grammars import GrammarCompiler
from coordinator.answers.request import Request
from coordinator.answers.tokenizer import TOO_LONG_WORDS, TextTooLong, Tokenizer
from coordinator.core.errors import TooBusy
from coordinator.grammars.error import GrammarError, TooManyGrammars
from coordinator.http.errors import BadRequest
from coordinator.http.native.schema import GeneratePrompt, LogprobParams
from coordinator.timelines.arrival import UNKNOWN_ARRIVAL, Arrival
from protocol.namespace import Namespace
from protocol.prompt_logprobs import MAX_PROMPT_LOGPROBS
from protocol.sampling import Sampling

MIN_TEMPERATURE = 1e-6
"""Below it the likeliest token is taken, as in SGLang."""
TOO_LONG = "context_length_exceeded"
"""The code of a prompt that does not fit, alone or with the answer that is asked for."""
MIN_REPETITION_PENALTY = 1e-30
"""A logit divided by less would leave float32. Any repeated token is certain long before."""


async def tokenize(prompt: GeneratePrompt, tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids of a prompt; a long text is tokenized on another thread. Raises
    BadRequest."""
    if prompt.input_ids is not None:
        tokens = prompt.input_ids
    else:
        tokens = await encode(prompt.text or "", tokenizer)
    if not tokens:
        raise BadRequest("the prompt is empty", "input_ids" if prompt.text is None else "text")
    check_ids(tokens, "input_ids" if prompt.text is None else "text", tokenizer)
    return tokens


async def encode(text: str, tokenizer: Tokenizer, with_special_tokens: bool = True) -> list[int]:
    """Returns the token ids of a text; a long one is tokenized on another thread. Raises
    BadRequest if it cannot fit."""
    try:
        return await tokenizer.encode(text, with_special_tokens)
    except TextTooLong as error:
        raise BadRequest(str(error), "text", TOO_LONG) from error


async def compile_grammar(
    prompt: GeneratePrompt, tokenizer: Tokenizer, compiler: GrammarCompiler
) -> str:
    """Returns `Sampling.grammar` of the prompt. Raises BadRequest, and TooBusy."""
    if prompt.grammar is None:
        return ""
    kind = prompt.grammar.kind
    key = prompt.grammar.key or kind
    if not tokenizer.eos_token_ids:
        raise BadRequest(
            f"{key}: the model has no end token, so no grammar can end an answer; "
            "name one as eos_token_id in its generation_config.json",
            key,
        )
    try:
        return await compiler.compile(kind, prompt.grammar.text)
    except GrammarError as error:
        raise BadRequest(f"{key}{str(error).removeprefix(kind)}", key) from None
    except TooManyGrammars as error:
        raise TooBusy(str(error)) from None


def make_request(
    prompt: GeneratePrompt,
    tokens: list[int],
    choice: int,
    tokenizer: Tokenizer,
    max_total_tokens: int,
    arrival: Arrival = UNKNOWN_ARRIVAL,
    grammar: str = "",
) -> Request:
    """Returns the request for answer number `choice` of the n answers to `tokens`; each gets its
    own seed and its own rid.

    `max_total_tokens` bounds prompt and answer together; `arrival` is that of the body.
    Raises BadRequest.
    """
    params = prompt.sampling
    room = max_total_tokens - len(tokens)
    wanted = params.max_new_tokens
    if wanted is not None and prompt.ends_with_context and room > 0:
        wanted = min(wanted, room)
    if room < 1 or (wanted is not None and wanted > room):
        asked = "" if wanted is None else f" plus max_new_tokens {wanted}"
        has = "the prompt has" if room >= 1 else f"{TOO_LONG_WORDS}: it has"
        raise BadRequest(
            f"{has} {len(tokens)} tokens{asked}; at most {max_total_tokens} fit "
            "(prompt and answer together)",
            "sampling_params.max_new_tokens" if room >= 1 else None,
            TOO_LONG,
        )
    max_new_tokens = room if wanted is None else wanted
    if params.min_new_tokens > max_new_tokens:
        raise BadRequest(
            f"min_new_tokens is {params.min_new_tokens}; the answer has at most {max_new_tokens}",
            "sampling_params.min_new_tokens",
        )
    stop_token_ids = params.stop_token_ids or []
    check_ids(stop_token_ids, "stop_token_ids", tokenizer, "sampling_params.")
    end_token_ids = [] if params.ignore_eos else [*stop_token_ids, *tokenizer.eos_token_ids]
    if grammar and params.ignore_eos:
        end_token_ids = list(tokenizer.eos_token_ids)
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
        priority=prompt.priority,
        arrival=arrival,
        tenant=arrival.tenant(prompt.cache_salt),
        stop_strings=params.stops,
        stop_patterns=params.stop_patterns,
        keeps_stop=params.no_stop_trim,
        pieces=tokenizer.pieces(params.skip_special_tokens),
    )


def _sampling(
    prompt: GeneratePrompt,
    prompt_length: int,
    choice: int,
    end_token_ids: list[int],
    tokenizer: Tokenizer,
) -> Sampling:
    """Returns the checked sampling of one answer. Raises BadRequest."""
    params, seed, logprobs = prompt.sampling, prompt.sampling.sampling_seed, prompt.logprobs
    biased = [token for token, _ in params.biases]
    check_ids(biased, "logit_bias", tokenizer, "sampling_params.")
    if logprobs is not None:
        check_ids(logprobs.token_ids, "token_ids_logprob", tokenizer)
        _check_prompt_logprobs(logprobs, prompt_length)
    return Sampling(
        temperature=params.temperature if params.temperature >= MIN_TEMPERATURE else 0.0,
        top_k=max(0, params.top_k),
        top_p=params.top_p,
        min_p=params.min_p,
        seed=secrets.randbits(63) if seed is None else _wrapped(seed + choice),
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=max(MIN_REPETITION_PENALTY, params.repetition_penalty),
        logit_bias=tuple(params.biases),
        prompt_length=prompt_length,
        min_new_tokens=params.min_new_tokens,
        end_token_ids=tuple(end_token_ids) if params.min_new_tokens or prompt.grammar else (),
        num_top_logprobs=logprobs.num_top if logprobs is not None else -1,
        logprob_token_ids=logprobs.token_ids if logprobs is not None else (),
        prompt_logprobs_from=logprobs.start if logprobs is not None else -1,
    )


def _check_prompt_logprobs(logprobs: LogprobParams, prompt_length: int) -> None:
    """Raises BadRequest for a start behind the prompt, as SGLang does, and for too many."""
    start = logprobs.start
    if start >= prompt_length:
        raise BadRequest(
            f"logprob_start_len is {start}; the prompt has {prompt_length} tokens, so it must be "
            f"less than that",
            "logprob_start_len",
        )
    num_each = 1 + logprobs.num_top + len(logprobs.token_ids)
    if start >= 0 and (prompt_length - start) * num_each > MAX_PROMPT_LOGPROBS:
        raise BadRequest(
            f"logprob_start_len {start} asks for {num_each} logprobs of each of "
            f"{prompt_length - start} tokens; at most {MAX_PROMPT_LOGPROBS} in all go: ask for "
            "fewer with top_logprobs_num and token_ids_logprob, or for a later start",
            "logprob_start_len",
        )


def _wrapped(seed: int) -> int:
    """Returns `seed` as an int64, which wraps around."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def check_ids(ids: Sequence[int], name: str, tokenizer: Tokenizer, where: str = "") -> None:
    """Raises BadRequest, with `name` as the key, which is within `where`, unless all of `ids` are
    in the vocabulary."""
    if not ids or (min(ids) >= 0 and max(ids) < tokenizer.vocab_size):
        return
    wrong = next(t for t in ids if not 0 <= t < tokenizer.vocab_size)
    raise BadRequest(
        f"{name} has the id {wrong}; the vocabulary has ids 0 to {tokenizer.vocab_size - 1}",
        where + name,
    )

"""How many tokens a node makes room for when it admits a request, takes from a cache, and computes
in one step beside answers. Pure.

The coordinator counts with the same functions, so that it sends no request where there is no room,
and knows what a prompt takes.

    prompt ├── answer so far ──┤── head room ──┤ ··· the rest of the answer ··· ┤ most tokens
           admission finds room for all of this │ the rest must only fit into an empty pool

    one step ├── a token of every answer ──┤── a chunk of a prompt ──┤
             │◄─────────────── at most `max_itl_s` ─────────────────►│
"""

from __future__ import annotations

HEADROOM_TOKENS = 64
"""A request is admitted only if it and all admitted ones can grow by so many tokens. With less room
it would soon have to give its pages to others, and its prompt would have been computed in vain."""

MIN_CHUNK_TOKENS = 16
"""A chunk beside answers has so many tokens whatever bounds its step, so that every prompt goes on.
A shorter one would say nothing about how fast prompts are computed."""


def most_tokens(num_prompt_tokens: int, max_new_tokens: int) -> int:
    """Returns how many tokens of prompt and answer may need KV in the end. The last token of an
    answer needs none, since nothing is computed after it."""
    return num_prompt_tokens + max(1, max_new_tokens) - 1


def admission_tokens(num_tokens: int, most: int) -> int:
    """Returns for how many tokens admission makes room: `num_tokens` that are there now and
    HEADROOM_TOKENS to grow, but never more than `most`, the request's `most_tokens`."""
    return min(num_tokens + HEADROOM_TOKENS, most)


def reusable_tokens(num_tokens: int, logprobs_from: int | None = None) -> int:
    """Returns how many leading tokens may come from a cache by whoever computes the `num_tokens`
    tokens of a prompt.

    The last one has to be computed, as its logits choose the first token of the answer; with
    logprobs of the prompt from a position on so has the token before that position.
    """
    last = num_tokens - 1
    return last if logprobs_from is None else max(0, min(last, logprobs_from - 1))


def chunk_time_s(max_itl_s: float, step_s: float, tokens_per_s: float) -> float:
    """Returns how long a step may compute prompts beside its answers, if a step without prompts
    takes `step_s` and each second more computes `tokens_per_s` tokens (not 0)."""
    return max(max_itl_s - step_s, MIN_CHUNK_TOKENS / tokens_per_s)


def chunk_tokens(max_itl_s: float, step_s: float, tokens_per_s: float) -> int:
    """Returns how many tokens of prompts a step may have beside its answers. While either of the
    rates is not measured (0) these are few: their step is the first measurement."""
    if not step_s or not tokens_per_s:
        return MIN_CHUNK_TOKENS
    # A rate is a float: what the least time computes must not be rounded to less than the least.
    num_tokens = int(chunk_time_s(max_itl_s, step_s, tokens_per_s) * tokens_per_s)
    return max(num_tokens, MIN_CHUNK_TOKENS)

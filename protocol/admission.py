"""How many tokens a node makes room for when it admits a request, takes from a cache, and computes
of each prompt in one step. Pure.

The coordinator counts with the same functions, so that it sends no request where there is no room,
and knows what a prompt takes.

    prompt ├── answer so far ──┤── head room ──┤ ··· the rest of the answer ··· ┤ most tokens
           admission finds room for all of this │ the rest must only fit into an empty pool

    one step ├── a token of every answer ──┤── a chunk of a prompt ──┤
             │◄─────────────── at most `max_itl_s` ─────────────────►│

Several prompts share a step like this:

    ├── all, the shortest rest first, until one does not end ──┤── the oldest: a share ──┤

The shortest rest first makes the mean wait least. The oldest one has a share of all that is
computed, so that it goes on whatever comes later: until it ends, no more than 1 / OLDEST_SHARE
times its rest is computed in all. Then the next one is the oldest. So a prompt waits at most so
many times as long as in the order of arrival, but for the roundings of each step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

HEADROOM_TOKENS = 64
"""A request is admitted only if it and all admitted ones can grow by so many tokens. With less room
it would soon have to give its pages to others, and its prompt would have been computed in vain."""

MIN_CHUNK_TOKENS = 16
"""A chunk beside answers has so many tokens whatever bounds its step, so that every prompt goes on.
A shorter one would say nothing about how fast prompts are computed."""

OLDEST_SHARE = 0.5
"""The share of the prompts' tokens that the oldest prompt gets at least."""

SHORT_STEP_TOKENS = 512
"""A step with so many tokens of prompts keeps a GPU busy. Where a prompt ends it is not made longer
for the sake of prompts that do not: the token that follows comes with the end of the step."""


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


def chunk_sizes(rests: Sequence[int], max_tokens: int) -> list[int]:
    """Returns how many tokens of each prompt the next step computes, `max_tokens` in all at most.

    `rests` has what is left of each prompt, in the order of their arrival.
    """
    sizes = [0] * len(rests)
    order = sorted(range(len(rests)), key=rests.__getitem__)
    # The oldest gets enough to tell how fast prompts are computed, or no step might ever tell it.
    kept = max(int(OLDEST_SHARE * max_tokens), MIN_CHUNK_TOKENS)
    left, is_ending = max_tokens, False
    for i in order:
        if i == 0:
            kept = 0
        room = left - min(kept, rests[0])
        if is_ending:
            room = min(room, SHORT_STEP_TOKENS - (max_tokens - left))
        if room <= 0:
            break
        sizes[i] = min(rests[i], room)
        left -= sizes[i]
        is_ending = is_ending or sizes[i] == rests[i]
    if rests and sizes[0] < rests[0]:
        sizes[0] = _of_oldest(rests[0], sizes[0], left, max_tokens, is_ending)
    return sizes


def _of_oldest(rest: int, size: int, left: int, max_tokens: int, is_ending: bool) -> int:
    """Returns how many tokens of the oldest prompt a step computes which has `size` of them already
    and room for `left` more."""
    if not is_ending:
        return min(rest, size + left)
    num_others = max_tokens - left - size
    share = math.ceil(num_others * OLDEST_SHARE / (1.0 - OLDEST_SHARE))
    wanted = max(size, share, MIN_CHUNK_TOKENS, SHORT_STEP_TOKENS - num_others)
    return min(rest, size + left, wanted)


def delay_by_oldest_s(work_s: float, longer_s: float) -> float:
    """Returns how much later prompts that need `work_s` end because an older prompt has its share
    of their steps. It is one of those with longer rests, which need `longer_s` in all."""
    return min(longer_s, work_s * OLDEST_SHARE / (1.0 - OLDEST_SHARE))

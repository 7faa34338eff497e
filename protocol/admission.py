"""How many tokens of a request a decode node makes room for; whoever sends it there counts the
same. Pure.

    prompt ├── answer so far ──┤── head room ──┤ ··· the rest of the answer ··· ┤ most tokens
           admission finds room for all of this │ and only that has to fit at all
"""

from __future__ import annotations

HEADROOM_TOKENS = 64
"""Nobody is admitted unless it and all that are admitted can grow by so many tokens: else it would
soon give way again, and compute its prompt for that."""


def most_tokens(num_prompt_tokens: int, max_new_tokens: int) -> int:
    """Of prompt and answer, whose KV may be needed; nobody needs that of the last token."""
    return num_prompt_tokens + max(1, max_new_tokens) - 1


def admission_tokens(num_tokens: int, most: int) -> int:
    """With `num_tokens` there now, and HEADROOM_TOKENS more as far as there may be so many."""
    return min(num_tokens + HEADROOM_TOKENS, most)

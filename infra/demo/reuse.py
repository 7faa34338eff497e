"""What the demo claims of prompts that begin alike, and whether it holds. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReusedPrompt:
    """A prompt that was computed cold, and then one with the same beginning and another ending."""

    shared_tokens: int
    """How many tokens the two have in common, in whole pages."""
    prompt_tokens: int
    """The length of the second one."""
    cached_tokens: int
    """How many of them were not computed again."""
    cold_s: float
    """Seconds to the first token of the first one."""
    warm_s: float
    """The same of the second one."""
    owner: str
    """The node that computed the first one."""
    computed_by: str
    """The node that computed what was left of the second one."""

    @property
    def uncached_tokens(self) -> int:
        """How many tokens of the second prompt nobody had computed before."""
        return self.prompt_tokens - self.shared_tokens


def problem_with(
    pairs: Sequence[ReusedPrompt], computed_tokens: int, cold_tokens: int, checks_times: bool
) -> str:
    """Returns how the claim fails, as a sentence; "" if it holds.

    `computed_tokens` is what all nodes have computed for the pairs, `cold_tokens` the length of
    their first prompts together. On a busy machine times are noise, and so are routes, which
    depend on them: `checks_times` says whether both count.
    """
    for pair in pairs:
        if pair.cached_tokens < pair.shared_tokens:
            return (
                f"only {pair.cached_tokens} of {pair.shared_tokens} tokens that were there "
                "were reused"
            )
    at_most = cold_tokens + sum(pair.uncached_tokens for pair in pairs)
    if computed_tokens > at_most:
        return f"{computed_tokens} tokens were computed, of which {at_most} were new"
    if not checks_times:
        return ""
    # Where nodes differ in speed by chance, fetching the pages to another one may cost less.
    if 2 * num_by_owners(pairs) <= len(pairs):
        return "most prompts were not computed where their beginnings are"
    if median_s(pairs, "warm_s") >= median_s(pairs, "cold_s"):
        return "the prompts with a known beginning were not faster"
    return ""


def num_by_owners(pairs: Sequence[ReusedPrompt]) -> int:
    """Returns how many of the second prompts were computed by the node of the first one."""
    return sum(pair.computed_by == pair.owner for pair in pairs)


def median_s(pairs: Sequence[ReusedPrompt], name: str) -> float:
    """Returns the median of one of the times, `cold_s` or `warm_s`."""
    return statistics.median(getattr(pair, name) for pair in pairs)


def shared_in_pages(first: Sequence[int], second: Sequence[int], page_size: int) -> int:
    """Returns how many leading tokens two prompts have in common, in whole pages."""
    is_same = [a == b for a, b in zip(first, second, strict=False)]
    num_same = is_same.index(False) if False in is_same else len(is_same)
    return num_same // page_size * page_size

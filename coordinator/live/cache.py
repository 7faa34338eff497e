"""What the caches have saved, and which prefixes are found most. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from coordinator.core.core import CoordinatorCore
from coordinator.core.hot_prefixes import HotPrefix

MAX_HOTTEST = 10


class PrefixRow(msgspec.Struct, frozen=True):
    """One of the prefixes that were found most often."""

    page_hash: str
    tokens: int
    hits: int
    last_hit_s_ago: float
    owners: list[str]
    is_salted: bool
    words: str | None
    """How it begins; None if that may not be shown."""


class CacheView(msgspec.Struct, frozen=True):
    """The cache of the whole cluster; what requests found is of this coordinator's requests."""

    reused_tokens: int
    """Prompt tokens that needed no computing, as the nodes have counted them since their start."""
    computed_tokens: int
    saved_s: float | None
    """For how long the nodes would have computed the reused tokens; None if no node has measured
    its speed."""
    local_share: float | None
    """Of the prompt tokens of the last five minutes: found where they were computed; None without
    requests."""
    fetched_share: float | None
    """The same, sent by another owner."""
    early_divergences: int
    """Requests of the last five minutes that left a cached path before token 256."""
    unique_pages: int
    duplicate_pages: int
    evicted_pages: int
    hottest: list[PrefixRow]


def cache_view(
    core: CoordinatorCore, words_of: Callable[[HotPrefix], str | None], now: float
) -> CacheView:
    """Returns the cache of now. `words_of` tells how a prefix begins, if that may be shown."""
    live, index = core.registry.live(), core.index
    counters = [one.load.counters for one in live]
    recent = core.statistics.totals.recent(now)
    num_prompt = recent.prompt_tokens
    num_local = recent.cached_tokens - recent.fetched_tokens
    speeds = [
        (one.load.counters.reused_tokens + one.load.counters.fetched_tokens)
        / one.load.prefill_tokens_per_s
        for one in live
        if one.load.prefill_tokens_per_s
    ]
    return CacheView(
        reused_tokens=sum(one.reused_tokens + one.fetched_tokens for one in counters),
        computed_tokens=sum(one.computed_tokens for one in counters),
        saved_s=round(sum(speeds), 2) if speeds else None,
        local_share=round(num_local / num_prompt, 4) if num_prompt else None,
        fetched_share=round(recent.fetched_tokens / num_prompt, 4) if num_prompt else None,
        early_divergences=recent.early_divergences,
        unique_pages=index.num_unique_pages,
        duplicate_pages=index.num_owned_pages - index.num_unique_pages,
        evicted_pages=sum(one.pages_evicted for one in counters),
        hottest=[
            _row(prefix, core, words_of(prefix), now)
            for prefix in core.statistics.hot_prefixes.hottest(MAX_HOTTEST)
        ],
    )


def _row(prefix: HotPrefix, core: CoordinatorCore, words: str | None, now: float) -> PrefixRow:
    return PrefixRow(
        prefix.page_hash.hex(),
        prefix.num_tokens,
        prefix.hits,
        round(now - prefix.last_hit, 1),
        sorted(node.name for node in core.index.owners(prefix.page_hash)),
        prefix.is_salted,
        words,
    )

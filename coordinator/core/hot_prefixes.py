"""`HotPrefixes`: which prefixes are hit most, in bounded memory. Pure.

After Space-Saving (Metwally, Agrawal and El Abbadi, 2005): a prefix that is not among those kept
takes the place of the one with the fewest hits and starts from its count, so counts are never too
low, and too high by at most `error`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.hashing import PageHash

MAX_PREFIXES = 1_000
FIRST_TOKENS = 16


@dataclass
class HotPrefix:
    """A prefix of requests that was found in a cache, and how often."""

    page_hash: PageHash
    """The hash of its last page, which covers all of it."""
    num_tokens: int
    first_tokens: list[int]
    is_salted: bool
    """True if it belongs to a tenant with a `cache_salt`."""
    hits: int
    error: int
    """How many of `hits` may have been another prefix's."""
    last_hit: float


class HotPrefixes:
    """Counts hits of at most `max_prefixes` prefixes, those that are hit most."""

    def __init__(self, max_prefixes: int = MAX_PREFIXES) -> None:
        self._max_prefixes = max_prefixes
        self._prefixes: dict[PageHash, HotPrefix] = {}
        self._coldest: list[tuple[int, float, PageHash]] = []  # repaired when popped

    def hit(self, page_hash: PageHash, tokens: Sequence[int], is_salted: bool, now: float) -> None:
        """Counts that a request found `tokens`, a prefix whose last page is `page_hash`, in a
        cache."""
        known = self._prefixes.get(page_hash)
        if known is not None:
            known.hits += 1
            known.last_hit = now
            return
        error = 0
        if len(self._prefixes) >= self._max_prefixes:
            error = self._drop_coldest().hits
        self._prefixes[page_hash] = HotPrefix(
            page_hash, len(tokens), list(tokens[:FIRST_TOKENS]), is_salted, error + 1, error, now
        )
        heapq.heappush(self._coldest, (error + 1, now, page_hash))

    def hottest(self, limit: int) -> list[HotPrefix]:
        """Returns up to `limit` prefixes, those with the most hits first; among equals the one hit
        last."""
        ranked = sorted(self._prefixes.values(), key=lambda p: (-p.hits, -p.last_hit))
        return ranked[:limit]

    def _drop_coldest(self) -> HotPrefix:
        """Removes and returns the prefix with the fewest hits; among equals the one hit longest
        ago."""
        while True:
            hits, last_hit, page_hash = self._coldest[0]
            prefix = self._prefixes[page_hash]
            if (prefix.hits, prefix.last_hit) == (hits, last_hit):
                heapq.heappop(self._coldest)
                return self._prefixes.pop(page_hash)
            heapq.heapreplace(self._coldest, (prefix.hits, prefix.last_hit, page_hash))

"""`Counters`: what a scheduler counts, and its part of a heartbeat. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.cache.prefix_cache import PrefixCache
from protocol.counters import NodeCounters
from protocol.ids import Role
from protocol.messages import MAX_LINKS, LinkLoad, Load


class Counters(NodeCounters):
    """The node's counters, and what only its scheduler counts."""

    exposed_s: dict[str, float] = msgspec.field(default_factory=dict)
    """For how many seconds requests waited for the pages of each peer while nothing was computed
    for them."""

    def started(self, num_cached_tokens: int) -> None:
        """Counts a request that is admitted with `num_cached_tokens` of its prompt cached here.

        If another node computes the prompt, that node counts the cached tokens.
        """
        self.requests += 1
        self.requests_hit += num_cached_tokens > 0
        self.reused_tokens += num_cached_tokens

    def copied(self, num_tokens: int, is_first_hit: bool) -> None:
        """Counts tokens of an admitted prompt whose KV was copied from a page that begins alike.
        `is_first_hit`: nothing else of the prompt was cached anywhere."""
        self.requests_hit += is_first_hit
        self.reused_tokens += num_tokens

    def fetched(self, num_pages: int, num_tokens: int) -> None:
        """Counts pages of a prompt that were fetched from another node."""
        self.pages_received += num_pages
        self.pages_fetched += num_pages
        self.fetched_tokens += num_tokens

    def exposed(self, peer: str, seconds: float) -> None:
        """Notes that a request waited for pages of `peer` while nothing was computed for it.

        Where there are too many peers, the one waited for least recently is forgotten.
        """
        self.exposed_s[peer] = self.exposed_s.pop(peer, 0.0) + seconds
        if len(self.exposed_s) > MAX_LINKS:
            del self.exposed_s[next(iter(self.exposed_s))]

    def load(self, role: Role, cache: PrefixCache, **queues: Any) -> Load:
        """Returns the scheduler's part of a heartbeat: pages, counters and its `queues`. Its
        `links` only tell how long requests waited for pages."""
        self.pages_evicted = cache.num_evicted_pages
        names = NodeCounters.__struct_fields__
        return Load(
            role=role,
            free_pages=cache.num_free_pages,
            cached_pages=cache.num_cached_pages,
            held_pages=cache.num_held_pages,
            tail_pages=cache.num_tail_pages,
            links=tuple(
                LinkLoad(peer, "in", exposed_s_total=seconds)
                for peer, seconds in self.exposed_s.items()
            ),
            counters=NodeCounters(**{name: getattr(self, name) for name in names}),
            **queues,
        )

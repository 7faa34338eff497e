"""What a scheduler counts over one life of its node; the `*_total` fields of `Load`. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.cache.prefix_cache import PrefixCache
from protocol.messages import MAX_LINKS, LinkLoad, Load


@dataclass
class Counters:
    computed_tokens_total: int = 0
    reused_tokens_total: int = 0
    generated_tokens_total: int = 0
    requests_total: int = 0
    requests_hit_total: int = 0
    pages_sent_total: int = 0
    pages_received_total: int = 0
    transfer_failures_total: int = 0
    preemptions_total: int = 0
    fetched_tokens_total: int = 0
    pages_fetched_total: int = 0
    exposed_s: dict[str, float] = field(default_factory=dict)

    def started(self, num_cached_tokens: int) -> None:
        """A request is admitted; `num_cached_tokens` of its prompt need no computing here, as they
        are cached. Of one whose prompt another node computes, that node counts them."""
        self.requests_total += 1
        self.requests_hit_total += num_cached_tokens > 0
        self.reused_tokens_total += num_cached_tokens

    def fetched(self, num_pages: int, num_tokens: int) -> None:
        """Pages of a prompt came from another node that owned them."""
        self.pages_received_total += num_pages
        self.pages_fetched_total += num_pages
        self.fetched_tokens_total += num_tokens

    def exposed(self, peer: str, seconds: float) -> None:
        """A request waited for pages of this peer while nothing was computed for it. Of too many
        peers the one waited for least recently is forgotten."""
        self.exposed_s[peer] = self.exposed_s.pop(peer, 0.0) + seconds
        if len(self.exposed_s) > MAX_LINKS:
            del self.exposed_s[next(iter(self.exposed_s))]

    def load(self, cache: PrefixCache, **queues: Any) -> Load:
        """The scheduler's part of a heartbeat: pages, these counters, and its queues; of `links`
        the waiting for pages."""
        totals = dict(vars(self))
        exposed_s: dict[str, float] = totals.pop("exposed_s")
        return Load(
            free_pages=cache.num_free_pages,
            cached_pages=cache.num_cached_pages,
            held_pages=cache.num_held_pages,
            pages_evicted_total=cache.num_evicted_pages,
            **queues,
            **totals,
            links=tuple(
                LinkLoad(peer, "in", exposed_s_total=seconds) for peer, seconds in exposed_s.items()
            ),
        )

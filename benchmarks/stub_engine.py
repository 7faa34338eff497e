"""An engine that computes nothing: a real prefix cache, and a queue that takes modelled time. Pure.

Prompts are computed one after another in order of arrival. Each leases its pages when its turn
comes, takes `prefill_s(uncached tokens)` seconds, and leaves its full pages in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.cache import Lease, PrefixCache
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Attempt

PrefillSeconds = Callable[[int], float]
"""How long an engine is busy with so many uncached tokens."""


def instant(uncached_tokens: int) -> float:
    return 0.0


@dataclass
class Counts:
    """What an engine has done in its life."""

    requests: int = 0
    requests_hit: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0


@dataclass(eq=False)
class Prompt:
    """A prompt on its way through one engine."""

    attempt: Attempt
    tokens: list[int]
    hashes: list[PageHash]
    """Of its full pages."""
    num_pages: int
    """Held while it is here."""
    arrived: float = 0.0
    lease: Lease | None = None
    cached_tokens: int = 0
    """Of its tokens, those whose pages were here when its turn came."""


class StubEngine:
    """Accounts for pages and time of one node."""

    def __init__(self, hasher: PageHasher, num_pages: int, prefill_s: PrefillSeconds) -> None:
        self.cache = PrefixCache(num_pages)
        self.counts = Counts()
        self._hasher = hasher
        self._prefill_s = prefill_s
        self._queue: deque[Prompt] = deque()
        self._busy_until = 0.0
        """When the first of the queue is computed, if it has its lease; else when the last one
        was."""

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def queued_tokens(self) -> int:
        """Not yet computed; of a prompt whose turn has not come nobody knows what is cached."""
        return sum(len(prompt.tokens) - prompt.cached_tokens for prompt in self._queue)

    def prompt(
        self, attempt: Attempt, tokens: list[int], cache_salt: str, max_new_tokens: int
    ) -> Prompt:
        """A prompt of this node's model that holds the pages of its answer too."""
        num_pages = self._hasher.num_pages(len(tokens) + max(0, max_new_tokens - 1))
        return Prompt(attempt, tokens, self._hasher.hashes(tokens, cache_salt), num_pages)

    def compute(self, prompt: Prompt, now: float) -> None:
        """Queues it; `finished` returns it when its time is over."""
        prompt.arrived = now
        self._queue.append(prompt)

    def finished(self, now: float) -> list[Prompt]:
        """Prompts computed by now, their pages cached."""
        finished: list[Prompt] = []
        while self._queue and self._start(self._queue[0], now) and self._busy_until <= now:
            prompt = self._queue.popleft()
            self.keep(prompt, now)
            finished.append(prompt)
        return finished

    def next_finish(self) -> float | None:
        """When the next call of `finished` has something; None: nothing is being computed."""
        return self._busy_until if self._queue and self._queue[0].lease is not None else None

    def acquire(self, prompt: Prompt, now: float) -> bool:
        """Leases its pages; False: there is no room now."""
        reusable = self._hasher.reusable(prompt.hashes, len(prompt.tokens))
        prompt.lease = self.cache.acquire(reusable, prompt.num_pages, now)
        if prompt.lease is None:
            return False
        prompt.cached_tokens = prompt.lease.num_cached_pages * self._hasher.page_size
        self.counts.requests += 1
        self.counts.requests_hit += prompt.cached_tokens > 0
        self.counts.reused_tokens += prompt.cached_tokens
        return True

    def keep(self, prompt: Prompt, now: float) -> None:
        """Its KV is here now, computed or received: its full pages stay, findable."""
        assert prompt.lease is not None
        self.cache.commit(prompt.lease, prompt.hashes, now)
        self.release(prompt)

    def release(self, prompt: Prompt) -> None:
        if prompt.lease is not None:
            self.cache.release(prompt.lease)
            prompt.lease = None

    def cancel(self, attempt: Attempt, now: float) -> None:
        """Drops an attempt and the older ones; the one that was being computed stops."""
        for prompt in [p for p in self._queue if p.attempt.superseded_by(attempt)]:
            if prompt.lease is not None:
                self._busy_until = now
            self._queue.remove(prompt)
            self.release(prompt)

    def _start(self, prompt: Prompt, now: float) -> bool:
        """Its turn has come: at the end of the one before it, however late this call is."""
        if prompt.lease is None:
            if not self.acquire(prompt, now):
                prompt.arrived = now  # it cannot have started before
                return False
            uncached = len(prompt.tokens) - prompt.cached_tokens
            self.counts.computed_tokens += uncached
            self._busy_until = max(self._busy_until, prompt.arrived) + self._prefill_s(uncached)
        return True

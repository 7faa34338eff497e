"""An engine that computes nothing: a real prefix cache, and a queue that takes modelled time. Pure.

Prompts are computed one after another in order of arrival. Each acquires its pages when its turn
comes, takes `prefill_s(uncached tokens)` seconds, and leaves its full pages in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.cache.prefix_cache import HeldPages, PrefixCache
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Attempt
from protocol.namespace import Namespace

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
    fetched_tokens: int = 0


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
    fetch_pages: int = 0
    """Leading pages that are here at the end of a fetch."""
    held: HeldPages | None = None
    cached_tokens: int = 0
    """Of its tokens, those that need no computing."""
    fetched_tokens: int = 0
    """Of these, those whose pages were fetched."""


class StubEngine:
    """Accounts for pages and time of one node."""

    def __init__(
        self,
        hasher: PageHasher,
        num_pages: int,
        prefill_s: PrefillSeconds,
        fetch_s: PrefillSeconds = instant,
    ) -> None:
        """`fetch_s`: how long so many tokens' pages take from another node."""
        self.cache = PrefixCache(num_pages)
        self.counts = Counts()
        self._hasher = hasher
        self._prefill_s = prefill_s
        self._fetch_s = fetch_s
        self._queue: deque[Prompt] = deque()
        self._busy_until = 0.0
        """When the first of the queue is computed, if it has its pages; else when the last one
        was."""

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    def queued_tokens(self, now: float) -> int:
        """Not yet computed: of the first prompt what its remaining time stands for; of a prompt
        whose turn has not come, what is not cached at present."""
        total = 0.0
        for prompt in self._queue:
            uncached: float = len(prompt.tokens) - self._known_cached_tokens(prompt)
            if prompt.held is not None:
                seconds = self._prefill_s(int(uncached))
                left_s = max(0.0, self._busy_until - now)
                uncached *= min(1.0, left_s / seconds) if seconds else 0.0
            total += uncached
        return int(total)

    def _known_cached_tokens(self, prompt: Prompt) -> int:
        if prompt.held is not None:
            return prompt.cached_tokens
        reusable = self._hasher.reusable(prompt.hashes, len(prompt.tokens))
        num_pages = max(prompt.fetch_pages, len(self.cache.find(reusable)))
        return num_pages * self._hasher.page_size

    def prompt(
        self, attempt: Attempt, tokens: list[int], namespace: Namespace, max_new_tokens: int
    ) -> Prompt:
        """A prompt of this node's model that holds the pages of its answer too."""
        num_pages = self._hasher.num_pages(len(tokens) + max(0, max_new_tokens - 1))
        return Prompt(attempt, tokens, self._hasher.hashes(tokens, namespace), num_pages)

    def compute(self, prompt: Prompt, now: float, fetch_pages: int = 0) -> None:
        """Queues it, with a fetch of its leading `fetch_pages` pages under way; `finished` returns
        it when its time is over."""
        reusable = self._hasher.reusable(prompt.hashes, len(prompt.tokens))
        num_missing = min(fetch_pages, len(reusable)) - len(self.cache.find(reusable))
        prompt.arrived = now
        if num_missing > 0:
            prompt.fetch_pages = min(fetch_pages, len(reusable))
            prompt.arrived += self._fetch_s(num_missing * self._hasher.page_size)
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
        return self._busy_until if self._queue and self._queue[0].held is not None else None

    def acquire(self, prompt: Prompt, now: float) -> bool:
        """Acquires its pages; False: there is no room now."""
        reusable = self._hasher.reusable(prompt.hashes, len(prompt.tokens))
        prompt.held = self.cache.acquire(reusable, prompt.num_pages, now)
        if prompt.held is None:
            return False
        page_size, num_here = self._hasher.page_size, prompt.held.num_cached_pages
        prompt.cached_tokens = max(num_here, prompt.fetch_pages) * page_size
        prompt.fetched_tokens = prompt.cached_tokens - num_here * page_size
        self.counts.requests += 1
        self.counts.requests_hit += prompt.cached_tokens > 0
        self.counts.reused_tokens += num_here * page_size
        self.counts.fetched_tokens += prompt.fetched_tokens
        return True

    def keep(self, prompt: Prompt, now: float) -> None:
        """Its KV is here now, computed or received: its full pages stay, findable."""
        assert prompt.held is not None
        self.cache.commit(prompt.held, prompt.hashes, now)
        self.release(prompt)

    def release(self, prompt: Prompt) -> None:
        if prompt.held is not None:
            self.cache.release(prompt.held)
            prompt.held = None

    def cancel(self, attempt: Attempt, now: float) -> None:
        """Drops an attempt and the older ones; the one that was being computed stops."""
        for prompt in [p for p in self._queue if p.attempt.superseded_by(attempt)]:
            if prompt.held is not None:
                self._busy_until = now
            self._queue.remove(prompt)
            self.release(prompt)

    def _start(self, prompt: Prompt, now: float) -> bool:
        """Its turn has come: at the end of the one before it, however late this call is."""
        if prompt.held is None:
            if not self.acquire(prompt, now):
                prompt.arrived = now  # it cannot have started before
                return False
            uncached = len(prompt.tokens) - prompt.cached_tokens
            self.counts.computed_tokens += uncached
            self._busy_until = max(self._busy_until, prompt.arrived) + self._prefill_s(uncached)
        return True

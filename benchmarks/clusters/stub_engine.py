"""`StubEngine`: computes nothing, but has a real prefix cache and takes modelled time. Pure.

Prompts are "computed" one after another in order of arrival. Each gets its pages when its turn
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
"""Returns for how many seconds an engine is busy with a number of uncached tokens."""


def instant(uncached_tokens: int) -> float:
    """Takes no time for any number of tokens."""
    return 0.0


@dataclass
class Counts:
    """What an engine has counted since its start."""

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
    """The page hashes of its full pages."""
    num_pages: int
    """How many pages it holds while it is here."""
    arrived: float = 0.0
    """When it can begin at the earliest: as it came, or at the end of its fetch."""
    fetch_pages: int = 0
    """How many leading pages are here at the end of its fetch; 0 without one."""
    held: HeldPages | None = None
    cached_tokens: int = 0
    """How many of its tokens need no computing."""
    fetched_tokens: int = 0
    """How many of `cached_tokens` are there because their pages were fetched."""


class StubEngine:
    """Accounts for the pages and the time of one node. Times are those of the caller's clock."""

    def __init__(
        self,
        hasher: PageHasher,
        num_pages: int,
        prefill_s: PrefillSeconds,
        fetch_s: PrefillSeconds = instant,
    ) -> None:
        """`prefill_s` says how long uncached tokens take, `fetch_s` how long the pages of a number
        of tokens take from another node."""
        self.cache = PrefixCache(num_pages, hasher.page_size)
        self.counts = Counts()
        self._hasher = hasher
        self._prefill_s = prefill_s
        self._fetch_s = fetch_s
        self._queue: deque[Prompt] = deque()
        self._busy_until = 0.0
        """When the first prompt of the queue will be computed, if it has its pages; else when the
        last prompt was."""

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    def queued_tokens(self, now: float) -> int:
        """Returns how many tokens are still to be computed. For the prompt that is being computed
        it is the share of its remaining time; for one whose turn has not come, what is not cached
        at present."""
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
        """Returns how many tokens of a prompt are cached or fetched, as far as it is known now."""
        if prompt.held is not None:
            return prompt.cached_tokens
        reusable = self._hasher.reusable(prompt.hashes, len(prompt.tokens))
        num_pages = max(prompt.fetch_pages, len(self.cache.find(reusable)))
        return num_pages * self._hasher.page_size

    def prompt(
        self, attempt: Attempt, tokens: list[int], namespace: Namespace, max_new_tokens: int
    ) -> Prompt:
        """Returns a prompt that will hold the pages of its answer, too. It is not queued yet."""
        num_pages = self._hasher.num_pages(len(tokens) + max(0, max_new_tokens - 1))
        return Prompt(attempt, tokens, self._hasher.hashes(tokens, namespace), num_pages)

    def compute(self, prompt: Prompt, now: float, fetch_pages: int = 0) -> None:
        """Queues a prompt; `finished` returns it when its time is over. If some of its leading
        `fetch_pages` pages are missing, it cannot begin before a fetch of them is over."""
        reusable = self._hasher.reusable(prompt.hashes, len(prompt.tokens))
        num_missing = min(fetch_pages, len(reusable)) - len(self.cache.find(reusable))
        prompt.arrived = now
        if num_missing > 0:
            prompt.fetch_pages = min(fetch_pages, len(reusable))
            prompt.arrived += self._fetch_s(num_missing * self._hasher.page_size)
        self._queue.append(prompt)

    def finished(self, now: float) -> list[Prompt]:
        """Returns the prompts that have been computed by `now`; their full pages are cached."""
        finished: list[Prompt] = []
        while self._queue and self._start(self._queue[0], now) and self._busy_until <= now:
            prompt = self._queue.popleft()
            self.keep(prompt, now)
            finished.append(prompt)
        return finished

    def next_finish(self) -> float | None:
        """Returns when the prompt that is being computed will be finished; None without one."""
        return self._busy_until if self._queue and self._queue[0].held is not None else None

    def acquire(self, prompt: Prompt, now: float) -> bool:
        """Takes the pages of a prompt and counts its hits. Returns False if there is no room."""
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
        """Ends a prompt whose KV is here, computed or received: its full pages stay cached."""
        assert prompt.held is not None
        self.cache.commit(prompt.held, prompt.hashes, now)
        self.release(prompt)

    def release(self, prompt: Prompt) -> None:
        """Gives back the pages of a prompt, if it holds any."""
        if prompt.held is not None:
            self.cache.release(prompt.held)
            prompt.held = None

    def cancel(self, attempt: Attempt, now: float) -> None:
        """Drops the attempt and older ones of its request. If one was being computed, the engine
        is free from `now` on."""
        for prompt in [p for p in self._queue if p.attempt.superseded_by(attempt)]:
            if prompt.held is not None:
                self._busy_until = now
            self._queue.remove(prompt)
            self.release(prompt)

    def _start(self, prompt: Prompt, now: float) -> bool:
        """Begins to compute the first prompt of the queue, unless it has begun. Returns False if
        there is no room for its pages.

        It begins at the end of the prompt before it, however late this call is: a caller that
        looks seldom must not slow the engine down.
        """
        if prompt.held is None:
            if not self.acquire(prompt, now):
                prompt.arrived = now  # while there was no room it could not begin
                return False
            uncached = len(prompt.tokens) - prompt.cached_tokens
            self.counts.computed_tokens += uncached
            self._busy_until = max(self._busy_until, prompt.arrived) + self._prefill_s(uncached)
        return True

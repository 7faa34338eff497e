"""What a coordinator counts over its requests: since its start, and over the last minutes. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields

WINDOW_S = 300.0
BUCKET_S = 10.0


@dataclass
class Counts:
    """Sums over finished requests."""

    requests: int = 0
    requests_hit: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    fetched_tokens: int = 0
    """Of `cached_tokens`, those whose pages came from another node."""
    completion_tokens: int = 0
    transferred_pages: int = 0
    retries: int = 0
    failed: int = 0

    def add(self, other: Counts) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def request_hit_ratio(self) -> float:
        return ratio(self.requests_hit, self.requests)

    @property
    def token_hit_ratio(self) -> float:
        return ratio(self.cached_tokens, self.prompt_tokens)


class Totals:
    """`lifetime`, and buckets of BUCKET_S that together are the window."""

    def __init__(self) -> None:
        self.lifetime = Counts()
        self._buckets: deque[tuple[float, Counts]] = deque()

    def finished(self, counts: Counts, now: float) -> None:
        """One more request, as counts of it alone."""
        self.lifetime.add(counts)
        began = now - now % BUCKET_S
        if not self._buckets or self._buckets[-1][0] < began:
            self._buckets.append((began, Counts()))
            self._drop_old(now)
        self._buckets[-1][1].add(counts)

    def recent(self, now: float) -> Counts:
        """Of the last WINDOW_S, to a bucket."""
        self._drop_old(now)
        counts = Counts()
        for _, bucket in self._buckets:
            counts.add(bucket)
        return counts

    def _drop_old(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] <= now - WINDOW_S - BUCKET_S:
            self._buckets.popleft()


def ratio(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0

"""What a coordinator counts over its requests: since its start, and over the last minutes. Pure."""

from __future__ import annotations

from collections import deque

from protocol.counters import RequestCounters

WINDOW_S = 300.0
BUCKET_S = 10.0


class Totals:
    """Adds up the counters of requests over the whole life of this process and over the last
    minutes.

    The window is made of buckets of BUCKET_S each; old ones are dropped as a whole.
    """

    def __init__(self) -> None:
        self.lifetime = RequestCounters()
        self._buckets: deque[tuple[float, RequestCounters]] = deque()

    def finished(self, counters: RequestCounters, now: float) -> None:
        """Adds one more request, given as the counters of it alone."""
        self.lifetime.add(counters)
        began = now - now % BUCKET_S
        if not self._buckets or self._buckets[-1][0] < began:
            self._buckets.append((began, RequestCounters()))
            self._drop_old(now)
        self._buckets[-1][1].add(counters)

    def recent(self, now: float) -> RequestCounters:
        """Returns the sums over the last WINDOW_S, to the accuracy of a bucket."""
        self._drop_old(now)
        counters = RequestCounters()
        for _, bucket in self._buckets:
            counters.add(bucket)
        return counters

    def last(self, window_s: float, now: float) -> tuple[RequestCounters, float]:
        """Returns the sums over at least the last `window_s`, and over how many seconds they are:
        they begin where a bucket does."""
        begin = now - window_s
        begin -= begin % BUCKET_S
        counters = RequestCounters()
        for began, bucket in self._buckets:
            if began >= begin:
                counters.add(bucket)
        return counters, now - begin

    def _drop_old(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] <= now - WINDOW_S - BUCKET_S:
            self._buckets.popleft()

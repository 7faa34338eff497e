"""Counts and timings of links: `LinkCounts` per peer and direction, `LinkMeter` per link."""

from __future__ import annotations

import threading
from typing import Literal

from kvtransfer.transport import LinkStats

MIN_RATED_BYTES = 1 << 20
"""A burst is rated when it has moved this much; a shorter one shows latency, not bandwidth."""


class LinkCounts:
    """The sums over all links there ever were in one direction to one peer. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._transport = ""
        self._num_open = 0
        self._num_opened = 0
        self._bytes_moved = 0
        self._busy_s = 0.0
        self._rated_bytes = 0
        self._rated_s = 0.0
        self._failures = 0

    @property
    def is_open(self) -> bool:
        """True while there is an open link."""
        return self._num_open > 0

    def opened(self, transport: str) -> LinkMeter:
        """Counts a new link over the backend `transport`; returns the meter of that link."""
        with self._lock:
            self._transport = transport
            self._num_open += 1
            self._num_opened += 1
        return LinkMeter(self)

    def closed(self) -> None:
        """Counts that a link has ended."""
        with self._lock:
            self._num_open -= 1

    def failed(self) -> None:
        """Counts a failure."""
        with self._lock:
            self._failures += 1

    def moved(self, num_bytes: int, seconds: float) -> None:
        """Counts a message of `num_bytes`, and the seconds since the one before ended."""
        with self._lock:
            self._bytes_moved += num_bytes
            self._busy_s += seconds

    def rated(self, num_bytes: int, seconds: float) -> None:
        """Adds a burst, without a pause in it, to the measurement of the bandwidth."""
        with self._lock:
            self._rated_bytes += num_bytes
            self._rated_s += seconds

    def stats(self, peer: str, direction: Literal["out", "in"], page_bytes: int) -> LinkStats:
        """Returns the counts as they stand. `page_bytes` is the size of a page in this rank's
        pool, over all layers."""
        with self._lock:
            return LinkStats(
                peer=peer,
                direction=direction,
                transport=self._transport,
                is_open=self.is_open,
                bytes_moved=self._bytes_moved,
                pages_moved=self._bytes_moved // page_bytes,
                busy_s=self._busy_s,
                bytes_per_s=self._rated_bytes / self._rated_s if self._rated_s else 0.0,
                failures=self._failures,
                num_opened=self._num_opened,
            )


class LinkMeter:
    """Measures one link and adds to the `LinkCounts` of its peer. One thread uses it; `now` is
    the time of `time.monotonic`."""

    def __init__(self, counts: LinkCounts) -> None:
        self._counts = counts
        self._since = 0.0
        self._burst_bytes = 0
        self._burst_s = 0.0

    def began(self, now: float) -> None:
        """Begins a new burst: messages are under way again after a pause."""
        self._since, self._burst_bytes, self._burst_s = now, 0, 0.0

    def moved(self, num_bytes: int, now: float) -> None:
        """Counts a message of the burst that has ended just now."""
        seconds, self._since = now - self._since, now
        self._counts.moved(num_bytes, seconds)
        self._burst_bytes += num_bytes
        self._burst_s += seconds
        # Messages overlap, so single ones cannot be timed: only a whole burst tells bandwidth.
        if self._burst_bytes >= MIN_RATED_BYTES:
            self._counts.rated(self._burst_bytes, self._burst_s)
            self._burst_bytes, self._burst_s = 0, 0.0

    def failed(self) -> None:
        """Counts a failure of the link."""
        self._counts.failed()

    def close(self) -> None:
        """Counts that the link has ended."""
        self._counts.closed()

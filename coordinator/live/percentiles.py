"""Percentiles of values and of histograms, and numbers of a moving minute. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the least of the sorted `values` that at least `share` of them do not exceed; None
    of no values."""
    if not values:
        return None
    return values[min(len(values) - 1, int(share * len(values)))]


def histogram_percentile(
    bounds: Sequence[float], counts: Sequence[int], share: float
) -> float | None:
    """Returns an estimate from the counts in the buckets up to each of `bounds`, and above the last
    one: values are taken to lie evenly within their bucket. None without observations."""
    rank = share * sum(counts)
    if not rank:
        return None
    below, lower = 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if below + count >= rank:
            return lower + (bound - lower) * (rank - below) / count
        below, lower = below + count, bound
    return bounds[-1]


class MovingWindow(Generic[T]):
    """Keeps a value of each moment at which somebody looked, of the last `window_s` seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._values: deque[tuple[float, T]] = deque()

    def push(self, value: T, now: float) -> tuple[float, T]:
        """Adds the value of now. Returns the oldest one that is kept, and how old it is."""
        self._values.append((now, value))
        # One that is older than the window stays: the window begins within its second.
        while len(self._values) > 1 and self._values[1][0] <= now - self._window_s:
            self._values.popleft()
        at, oldest = self._values[0]
        return now - at, oldest

    def clear(self) -> None:
        """Forgets everything."""
        self._values.clear()

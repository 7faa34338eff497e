"""`Metric`, `Histogram` and `Measures`: numbers that only grow, by the names that Prometheus gives
them. Pure.

A process keeps them in plain Python, as an answer's every token comes by here; only who is asked
for /metrics makes text of them (`protocol/telemetry/exposition.py`). Processes that share a port
add theirs up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from protocol.trust.bounds import Count

MAX_BUCKETS = 64

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Metric:
    """The definition of one series family."""

    name: str
    """The whole name, unit last; counters end in `_total`."""
    kind: Kind
    help: str
    """A sentence that says what is counted."""
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets, in rising order, without infinity."""


class Histogram(msgspec.Struct):
    """How many observations fell into each bucket, and their sum."""

    counts: Annotated[list[Count], msgspec.Meta(max_length=MAX_BUCKETS)]
    """One for each bound, and one for what lies above the last; not cumulative."""
    total: float = 0.0

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> Histogram:
        """Returns a histogram with these bounds that has observed nothing."""
        return cls([0] * (len(bounds) + 1))

    def observe(self, bounds: tuple[float, ...], value: float, times: int = 1) -> None:
        """Adds `times` observations of `value`. A bucket holds what is at most its bound."""
        self.counts[bisect_left(bounds, value)] += times
        self.total += value * times

    def add(self, other: Histogram) -> None:
        """Adds all observations of a histogram with the same bounds."""
        self.counts = [
            mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.total += other.total


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """The value of one series: a number, or a histogram."""

    name: str
    labels: tuple[str, ...]
    """The values of the metric's labels, in their order."""
    value: float | Histogram


class Measures:
    """The values of all series of a process. A series is there once it was touched."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, tuple[str, ...]], float] = {}
        self._histograms: dict[tuple[str, tuple[str, ...]], Histogram] = {}

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Adds to a counter, whose labels have these values."""
        key = (metric.name, labels)
        self._numbers[key] = self._numbers.get(key, 0) + by

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Gives a gauge, or a counter that somebody else counts, its value."""
        self._numbers[metric.name, labels] = value

    def observe(self, metric: Metric, value: float, *labels: str, times: int = 1) -> None:
        """Adds observations to a histogram."""
        self.histogram(metric, *labels).observe(metric.bounds, value, times)

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Returns the histogram of a series, which is made if there is none yet."""
        key = (metric.name, labels)
        found = self._histograms.get(key)
        if found is None:
            found = self._histograms[key] = Histogram.empty(metric.bounds)
        return found

    def add(self, sample: Sample) -> None:
        """Adds what another process has in the same series."""
        key = (sample.name, sample.labels)
        if not isinstance(sample.value, Histogram):
            self._numbers[key] = self._numbers.get(key, 0) + sample.value
            return
        found = self._histograms.get(key)
        if found is None:
            found = self._histograms[key] = Histogram([0] * len(sample.value.counts))
        found.add(sample.value)

    def samples(self) -> Iterator[Sample]:
        """Returns the values of all series, in no order that matters."""
        for (name, labels), number in self._numbers.items():
            yield Sample(name, labels, number)
        for (name, labels), histogram in self._histograms.items():
            yield Sample(name, labels, histogram)

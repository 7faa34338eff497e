"""Percentiles of values. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Percentiles:
    """Some percentiles of `count` values."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the value below which `share` of the ordered values lie, in a straight line between
    the two nearest."""
    position = (len(ordered) - 1) * share
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def percentiles_of(values: Iterable[float]) -> Percentiles | None:
    """Returns the percentiles of values, None if there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Percentiles(
        len(ordered),
        statistics.fmean(ordered),
        *(percentile(ordered, share) for share in (0.5, 0.9, 0.99)),
    )

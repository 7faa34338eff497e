"""Where the time to the first tokens went, of typical requests and of the slowest. Pure.

Percentiles of parts do not add up to the percentile of the whole. So the two bars are means over
requests: those whose first token came about as late as the median, and the slowest hundredth.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from coordinator.live.percentiles import percentile
from coordinator.live.recent_requests import STAGES, MeasuredRequest

TYPICAL = (0.4, 0.6)
"""The share of requests that are faster than typical ones, and where the slower ones begin."""
SLOWEST = 0.99


class WaterfallStage(msgspec.Struct, frozen=True):
    """One part of the way to the second token, in milliseconds."""

    name: str
    typical_ms: float
    """The mean over the typical requests; all stages of a bar add up."""
    slowest_ms: float
    p50_ms: float
    """Of this stage alone, over all requests."""
    p99_ms: float


class Waterfall(msgspec.Struct, frozen=True):
    """The stages of the requests of the last minute."""

    requests: int
    """How many of them had a first token."""
    first_token_p50_ms: float | None
    first_token_p99_ms: float | None
    stages: list[WaterfallStage]


def waterfall_of(by_first_token: Sequence[MeasuredRequest]) -> Waterfall:
    """Returns the waterfall of requests with a first token, the fastest first."""
    number = len(by_first_token)
    begin = min(int(TYPICAL[0] * number), max(0, number - 1))
    typical = by_first_token[begin : max(begin + 1, int(TYPICAL[1] * number))]
    slowest = by_first_token[min(int(SLOWEST * number), max(0, number - 1)) :]
    first = [one.first_token_s or 0.0 for one in by_first_token]
    return Waterfall(
        number,
        _ms(percentile(first, 0.5)),
        _ms(percentile(first, 0.99)),
        [_stage(i, by_first_token, typical, slowest) for i in range(len(STAGES))],
    )


def _stage(
    number: int,
    everyone: Sequence[MeasuredRequest],
    typical: Sequence[MeasuredRequest],
    slowest: Sequence[MeasuredRequest],
) -> WaterfallStage:
    values = sorted(one.stages_s[number] for one in everyone)
    return WaterfallStage(
        STAGES[number],
        _mean_ms(typical, number),
        _mean_ms(slowest, number),
        _ms(percentile(values, 0.5)) or 0.0,
        _ms(percentile(values, 0.99)) or 0.0,
    )


def _mean_ms(requests: Sequence[MeasuredRequest], number: int) -> float:
    if not requests:
        return 0.0
    return round(sum(one.stages_s[number] for one in requests) / len(requests) * 1e3, 3)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)

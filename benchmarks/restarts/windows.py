"""`Window`: what the requests that arrived within some seconds saw. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.restarts.load import Seen
from kvrelay.bench.results.percentiles import percentile


@dataclass(frozen=True)
class Window:
    """The requests that arrived from `at_s` on, until the next window."""

    at_s: float
    num_requests: int
    num_failed: int
    hit_ratio: float | None
    """Cached ÷ prompt tokens of those that were answered; None if none was."""
    p50_ms: float | None
    """Of the time to the first token."""
    p90_ms: float | None


def windows_of(seen: Sequence[Seen], seconds: float, width_s: float) -> list[Window]:
    """Returns the windows of a run of `seconds`, each `width_s` long."""
    starts = [number * width_s for number in range(round(seconds / width_s))]
    return [
        _window(start, [s for s in seen if start <= s.at_s < start + width_s]) for start in starts
    ]


def _window(at_s: float, seen: Sequence[Seen]) -> Window:
    answered = [one for one in seen if one.first_token_s is not None]
    if not answered:
        return Window(at_s, len(seen), len(seen), None, None, None)
    waits_ms = sorted(1000 * one.first_token_s for one in answered if one.first_token_s is not None)
    cached = sum(one.cached_tokens for one in answered)
    return Window(
        at_s,
        len(seen),
        len(seen) - len(answered),
        round(cached / sum(one.prompt_tokens for one in answered), 3),
        round(percentile(waits_ms, 0.5), 1),
        round(percentile(waits_ms, 0.9), 1),
    )

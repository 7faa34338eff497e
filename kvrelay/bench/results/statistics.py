"""Figures of a run, computed of its records. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvrelay.bench.results.percentiles import Percentiles, percentiles_of
from kvrelay.bench.results.record import AnswerRecord
from kvrelay.bench.results.slo import Slo

MAX_ERROR_RATE = 0.01
"""A run with more failures than this is not a result: those that fail make the others faster."""


@dataclass(frozen=True)
class RunFigures:
    """What one run has shown. Latencies are in milliseconds, of answers without a failure."""

    num_requests: int
    num_errors: int
    errors: dict[str, int]
    """How often each kind of failure was seen."""
    duration_s: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    goodput_per_s: float
    """Requests a second that kept every SLO."""
    goodput_share: float
    """The share of all requests that kept every SLO."""
    hit_rate: float | None
    """Cached tokens ÷ prompt tokens, of answers that told both; None if none did."""
    ttft_ms: Percentiles | None
    tpot_ms: Percentiles | None
    itl_ms: Percentiles | None
    e2e_ms: Percentiles | None

    @property
    def error_rate(self) -> float:
        """The share of all requests that failed."""
        return self.num_errors / self.num_requests if self.num_requests else 0.0

    @property
    def is_result(self) -> bool:
        """Whether so few requests failed that the other figures mean something."""
        return self.num_requests > 0 and self.error_rate <= MAX_ERROR_RATE


def figures_of(records: Sequence[AnswerRecord], slos: Sequence[Slo]) -> RunFigures:
    """Returns the figures of a run. It lasts from the first request to the end of the last one."""
    good = [record for record in records if not record.failure]
    duration_s = _duration_s(records)
    num_kept = sum(all(slo.is_kept(record) for slo in slos) for record in good)

    def per_s(count: float) -> float:
        return count / duration_s if duration_s else 0.0

    return RunFigures(
        num_requests=len(records),
        num_errors=len(records) - len(good),
        errors=dict(Counter(record.failure for record in records if record.failure)),
        duration_s=duration_s,
        requests_per_s=per_s(len(good)),
        input_tokens_per_s=per_s(sum(record.num_prompt_tokens or 0 for record in good)),
        output_tokens_per_s=per_s(sum(record.num_tokens for record in good)),
        goodput_per_s=per_s(num_kept),
        goodput_share=num_kept / len(records) if records else 0.0,
        hit_rate=_hit_rate(good),
        ttft_ms=_milliseconds(good, lambda record: [record.ttft_s]),
        tpot_ms=_milliseconds(good, lambda record: [record.tpot_s]),
        itl_ms=_milliseconds(good, lambda record: record.gaps_s),
        e2e_ms=_milliseconds(good, lambda record: [record.e2e_s]),
    )


def _duration_s(records: Sequence[AnswerRecord]) -> float:
    if not records:
        return 0.0
    return max(record.ended_s for record in records) - min(record.sent_s for record in records)


def _hit_rate(records: Iterable[AnswerRecord]) -> float | None:
    told = [
        (record.num_cached_tokens, record.num_prompt_tokens)
        for record in records
        if record.num_cached_tokens is not None and record.num_prompt_tokens
    ]
    if not told:
        return None
    return sum(cached for cached, _ in told) / sum(prompt for _, prompt in told)


def _milliseconds(
    records: Iterable[AnswerRecord],
    times_s: Callable[[AnswerRecord], Iterable[float | None]],
) -> Percentiles | None:
    return percentiles_of(
        time_s * 1e3 for record in records for time_s in times_s(record) if time_s is not None
    )

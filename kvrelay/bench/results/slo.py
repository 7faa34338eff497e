"""Objectives that a request keeps or misses. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kvrelay.bench.results.percentiles import percentile
from kvrelay.bench.results.record import AnswerRecord
from protocol.config import ConfigError

KINDS = ("ttft", "itl", "tpot", "e2e")
GAP_SHARE = 0.95
"""The gap of an answer that `itl` limits: its 95th percentile, so that one hiccup in a long answer
is no miss."""


@dataclass(frozen=True)
class Slo:
    """A limit in milliseconds for one kind of latency of every request."""

    kind: str
    limit_ms: float

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Reads `ttft=200`. Raises ConfigError."""
        kind, _, limit = text.partition("=")
        try:
            limit_ms = float(limit)
        except ValueError:
            limit_ms = 0.0
        if kind not in KINDS or not limit_ms > 0:
            raise ConfigError(
                f"--slo is {text!r}; it must be one of {', '.join(KINDS)}, then = and milliseconds,"
                " as in --slo ttft=200"
            )
        return cls(kind, limit_ms)

    def is_kept(self, record: AnswerRecord) -> bool:
        """Returns whether a request kept the limit. One that failed did not; an answer of one token
        has no gap that could be too long."""
        if record.failure:
            return False
        latency_s = self._latency_s(record)
        return latency_s is None or latency_s * 1e3 <= self.limit_ms

    def _latency_s(self, record: AnswerRecord) -> float | None:
        if self.kind == "ttft":
            return record.ttft_s
        if self.kind == "tpot":
            return record.tpot_s
        if self.kind == "e2e":
            return record.e2e_s
        return percentile(sorted(record.gaps_s), GAP_SHARE) if record.gaps_s else None

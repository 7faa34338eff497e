"""Whether the generator itself kept up: a busy one sends late and reads late, and then measures
itself rather than the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvrelay.bench.results.percentiles import percentiles_of

PROBE_S = 0.02
MAX_LAG_MS = 20.0
MAX_CPU_SHARE = 0.8


@dataclass(frozen=True)
class GeneratorHealth:
    """How busy the generator was in a run."""

    cpu_share: float
    """CPU time of this process ÷ the duration."""
    events_per_s: float
    lag_p99_ms: float
    """The 99th percentile of how late its event loop woke from a short sleep."""
    late_p99_ms: float
    """The 99th percentile of how late requests were sent."""

    @property
    def warning(self) -> str:
        """What is wrong, or ""."""
        if self.cpu_share > MAX_CPU_SHARE or self.lag_p99_ms > MAX_LAG_MS:
            return (
                f"the generator was the bottleneck ({self.cpu_share:.0%} of a core, event loop "
                f"{self.lag_p99_ms:.0f} ms late at p99): latencies are too high by as much; lower "
                "the load, or run the generator where more CPU time is left for it"
            )
        return ""


class HealthWatch:
    """Measures the generator from `start` to `end`."""

    def __init__(self) -> None:
        self.num_events = 0
        self._lags_s: list[float] = []

    def start(self) -> None:
        """Begins to measure; within an event loop."""
        self._started_s, self._cpu_s = time.perf_counter(), time.process_time()
        self._probe = asyncio.create_task(self._measure_lags())

    def end(self, lates_s: Sequence[float]) -> GeneratorHealth:
        """Ends and returns the measurement; `lates_s` are how late the requests were sent."""
        self._probe.cancel()
        elapsed_s = time.perf_counter() - self._started_s
        lag, late = percentiles_of(self._lags_s), percentiles_of(lates_s)
        return GeneratorHealth(
            (time.process_time() - self._cpu_s) / elapsed_s,
            self.num_events / elapsed_s,
            lag.p99 * 1e3 if lag else 0.0,
            late.p99 * 1e3 if late else 0.0,
        )

    async def _measure_lags(self) -> None:
        while True:
            due_s = time.perf_counter() + PROBE_S
            await asyncio.sleep(PROBE_S)
            self._lags_s.append(time.perf_counter() - due_s)

"""Sums since the start and over the last minutes, whenever requests end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.answers.totals import BUCKET_S, WINDOW_S, Totals
from protocol.counters import RequestCounters


@given(
    gaps=st.lists(st.floats(0.0, 2 * BUCKET_S) | st.just(WINDOW_S), max_size=50),
    silence_s=st.floats(0.0, 1.5 * WINDOW_S),
)
def test_the_window_forgets_and_the_lifetime_does_not(gaps: list[float], silence_s: float) -> None:
    totals = Totals()
    now, times = 1000.0, []
    for i, gap in enumerate(gaps):
        now += gap
        times.append(now)
        totals.finished(RequestCounters(requests=1, prompt_tokens=i), now)
    now += silence_s
    assert totals.lifetime.requests == len(gaps)
    assert totals.lifetime.prompt_tokens == sum(range(len(gaps)))
    recent = totals.recent(now).requests
    assert recent >= sum(now - at < WINDOW_S for at in times)
    assert recent <= sum(now - at < WINDOW_S + 2 * BUCKET_S for at in times)
    assert len(totals._buckets) <= WINDOW_S / BUCKET_S + 2

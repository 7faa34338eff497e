"""Sums since the start, and over the last minutes."""

from __future__ import annotations

from coordinator.answers.totals import BUCKET_S, WINDOW_S, Totals
from protocol.counters import RequestCounters, ratio


def test_a_ratio_of_nothing_is_nothing() -> None:
    assert ratio(0, 0) == 0.0 and ratio(1, 3) == 0.3333


def test_a_report_has_every_counter_and_the_ratios() -> None:
    counters = RequestCounters(requests=3, requests_hit=1, prompt_tokens=400, cached_tokens=100)
    report = counters.report()
    assert report.keys() > set(RequestCounters.__struct_fields__)
    assert (report["request_hit_ratio"], report["token_hit_ratio"]) == (0.3333, 0.25)


def test_counters_add_in_every_field() -> None:
    names = RequestCounters.__struct_fields__
    total = RequestCounters(*range(len(names)))
    total.add(RequestCounters(*range(10, 10 + len(names))))
    assert [getattr(total, name) for name in names] == [10 + 2 * i for i in range(len(names))]


def test_the_window_ends_with_a_whole_bucket() -> None:
    totals = Totals()
    totals.finished(RequestCounters(requests=1), BUCKET_S - 1)
    assert totals.recent(WINDOW_S + BUCKET_S - 2).requests == 1, "of less than a window ago"
    assert totals.recent(WINDOW_S + BUCKET_S).requests == 0


def test_recent_counters_are_a_copy() -> None:
    totals = Totals()
    totals.finished(RequestCounters(requests=1), 0.0)
    totals.recent(0.0).requests = 99
    assert totals.recent(0.0).requests == 1

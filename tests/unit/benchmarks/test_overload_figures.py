"""What outcomes of requests are counted as."""

from __future__ import annotations

import pytest

from benchmarks.overload.figures import percentile, phase_figures, recovery_s
from benchmarks.overload.load import Sent, Stream

RIGHT = [5, 5]
BOUND_S = 2.0


def answered(at: float, first_s: float = 1.0, **other: object) -> Sent:
    fields: dict[str, object] = {
        "first_token_at": at + first_s,
        "ended_at": at + first_s,
        "status": 200,
        "output_ids": RIGHT,
    }
    return Sent("", at, **(fields | other))  # type: ignore[arg-type]


def refused(at: float) -> Sent:
    return Sent("", at, ended_at=at + 0.01, status=429)


@pytest.mark.parametrize(
    ("one", "is_good"),
    [
        (answered(0.0), True),
        (answered(0.0, first_s=2.1), False),
        (answered(0.0, output_ids=[5]), False),
        (answered(0.0, failed=True), False),
        (refused(0.0), False),
    ],
)
def test_good_is_in_time_whole_and_right(one: Sent, is_good: bool) -> None:
    assert one.is_good(BOUND_S, RIGHT) == is_good


def test_a_phase_counts_what_was_sent_within_it() -> None:
    sent = [answered(0.5), answered(1.0, first_s=3.0), refused(1.5), answered(2.5)]
    figures = phase_figures(sent, 0.0, 2.0, BOUND_S, RIGHT)
    assert figures["sent_per_s"] == 1.5 and figures["answered_per_s"] == 1.0
    assert figures["good_per_s"] == figures["refused_per_s"] == 0.5
    assert figures["ttft_p99_s"] == 3.0


def test_a_cluster_has_recovered_when_all_is_good_from_then_on() -> None:
    assert recovery_s([refused(9.0), answered(10.0)], 10.0, BOUND_S, RIGHT) == 0.0
    late = [answered(10.5), refused(11.0), answered(12.0)]
    assert recovery_s(late, 10.0, BOUND_S, RIGHT) == 1.0
    assert recovery_s([*late, refused(13.0)], 10.0, BOUND_S, RIGHT) is None


def test_percentiles_and_arrivals() -> None:
    assert percentile([], 0.99) == 0.0 and percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    times = Stream("a", 10.0, 5.0, 25.0, 1).times()
    assert times == Stream("a", 10.0, 5.0, 25.0, 1).times() == sorted(times)
    assert 100 < len(times) < 300 and times[0] > 5.0 and times[-1] < 25.0

"""Percentiles, and the moving minute."""

from __future__ import annotations

import pytest

from coordinator.live.percentiles import MovingWindow, histogram_percentile, percentile


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 51.0 and percentile(values, 0.99) == 100.0
    assert percentile([7.0], 0.0) == percentile([7.0], 1.0) == 7.0
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([10, 0, 0], 0.5, 0.5),
        ([10, 10, 0], 0.75, 1.5),
        ([0, 0, 4], 0.5, 2.0),  # above the last bound nothing is known
        ([0, 0, 0], 0.5, None),
    ],
)
def test_values_lie_evenly_within_their_bucket(
    counts: list[int], share: float, expected: float | None
) -> None:
    assert histogram_percentile([1.0, 2.0], counts, share) == expected


def test_a_window_begins_within_its_second_and_forgets_what_is_older() -> None:
    window: MovingWindow[str] = MovingWindow(60.0)
    assert window.push("a", 100.0) == (0.0, "a")
    assert window.push("b", 130.0) == (30.0, "a")
    assert window.push("c", 159.0) == (59.0, "a")
    assert window.push("d", 191.0) == (61.0, "b"), "the newest that is as old as the window"
    window.clear()
    assert window.push("e", 192.0) == (0.0, "e")

"""The speed of a queue is measured over time, however close departures are."""

from __future__ import annotations

import pytest

from coordinator.admission.queue_speed import LEAST_S, QueueSpeed

PRESUMED = 5000.0


def speed_after(*gaps_s: float) -> float:
    """Returns the speed after departures of 1,000 tokens with these gaps, while others wait."""
    speed, now = QueueSpeed(), 100.0
    speed.departed(1000, True, now)
    for gap_s in gaps_s:
        now += gap_s
        speed.departed(1000, True, now)
    return speed.tokens_per_s(PRESUMED, now)


def test_nothing_measured_is_presumed() -> None:
    assert speed_after() == PRESUMED


def test_departures_of_one_moment_are_no_endless_speed() -> None:
    """A wait that is forecast from it would be none at all, and a tenant's credit without bound."""
    assert speed_after(1e-6) == pytest.approx(1000 / LEAST_S)


def test_a_steady_queue_has_its_own_speed() -> None:
    assert speed_after(*[0.2] * 60) == pytest.approx(5000, rel=1e-6)
    assert speed_after(*[0.02] * 600) == pytest.approx(50_000, rel=1e-3)

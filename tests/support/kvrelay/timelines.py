"""What holds for the timeline of any request, as /admin/requests/{rid} answers it."""

from __future__ import annotations

from typing import Any

import pytest

ROUNDED_MS = 0.001
"""Spans tell tenths of a microsecond; sums of them are this close."""


def assert_gapless(timeline: dict[str, Any]) -> None:
    """The spans follow one another from the arrival on, none is negative, and they sum to the
    whole."""
    assert timeline["spans"]
    end_ms = 0.0
    for span in timeline["spans"]:
        assert span["start_ms"] == pytest.approx(end_ms, abs=ROUNDED_MS), span
        assert span["duration_ms"] > 0, span
        end_ms = span["start_ms"] + span["duration_ms"]
    whole_ms = sum(span["duration_ms"] for span in timeline["spans"])
    assert whole_ms == pytest.approx(timeline["total_ms"], abs=ROUNDED_MS)
    assert 0.0 <= timeline["computing_ms"] <= timeline["total_ms"] + ROUNDED_MS


def names_of(timeline: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns the name of each span, and how many milliseconds it took."""
    return [(span["name"], round(span["duration_ms"], 3)) for span in timeline["spans"]]

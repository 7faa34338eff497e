"""The table of a restart drill for docs/guides/restarts.md. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.restarts.restarting import Restart
from benchmarks.restarts.windows import Window

NUM_AFTER = 3
"""So many windows are shown from a kill on, beside the one before it."""


def published_table(
    windows: Sequence[Window], restarts: Sequence[Restart], width_s: float
) -> list[str]:
    """Returns lines of Markdown: a row for each restart, with hit ratio and p90 of first tokens of
    the window before it and of those that follow, and how many requests failed in these."""
    spans = [f"{number * width_s:g}–{(number + 1) * width_s:g} s" for number in range(NUM_AFTER)]
    lines = [
        f"| killed | back after | before: hits, p90 | {' | '.join(spans)} | failed |",
        "| --- " * (NUM_AFTER + 4) + "|",
    ]
    for one in restarts:
        first = round(one.at_s / width_s)
        shown = windows[first - 1 : first + NUM_AFTER]
        cells = [one.process, f"{one.back_after_s:g} s", *map(_cell, shown)]
        failed = sum(window.num_failed for window in shown[1:])
        asked = sum(window.num_requests for window in shown[1:])
        lines.append(f"| {' | '.join(cells)} | {failed} of {asked} |")
    return lines


def _cell(window: Window) -> str:
    if window.hit_ratio is None or window.p90_ms is None:
        return "no answer"
    return f"{window.hit_ratio:.2f}, {window.p90_ms / 1000:.2f} s"

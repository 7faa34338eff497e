"""A picture of a restart drill as SVG: hit ratio and first tokens over time. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.restarts.restarting import Restart
from benchmarks.restarts.windows import Window

WIDTH, PANEL_HEIGHT, LEFT, RIGHT, TOP, GAP = 760, 160, 56, 24, 52, 54
DECADES = ("1 ms", "10 ms", "0.1 s", "1 s", "10 s")
HITS, MEDIAN, TAIL, MARK, GRID, TEXT = (
    "#1a7f37",
    "#1f6feb",
    "#9a6700",
    "#cf222e",
    "#d8dee4",
    "#24292f",
)


def picture_of(windows: Sequence[Window], restarts: Sequence[Restart], width_s: float) -> str:
    """Returns an SVG document: above the hit ratio, below p50 and p90 of first tokens on a
    logarithmic scale. A vertical line says when a process was killed."""
    end_s = windows[-1].at_s + width_s
    second = TOP + PANEL_HEIGHT + GAP
    height = second + PANEL_HEIGHT + 30
    hits = [window.hit_ratio for window in windows]
    medians = [_share(window.p50_ms) for window in windows]
    tails = [_share(window.p90_ms) for window in windows]
    starts = [window.at_s for window in windows]
    parts = [
        _panel(TOP, "hit ratio", ("0", "0.25", "0.5", "0.75", "1"), end_s),
        _steps(starts, hits, TOP, end_s, width_s, HITS),
        _panel(second, "first token: p50 blue, p90 brown", DECADES, end_s),
        _steps(starts, tails, second, end_s, width_s, TAIL),
        _steps(starts, medians, second, end_s, width_s, MEDIAN),
        *(_mark(one, end_s, second) for one in restarts),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{TEXT}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _share(milliseconds: float | None) -> float | None:
    """Returns where a time lies on the logarithmic axis, from 0 at 1 ms to 1 at 10 s."""
    if milliseconds is None:
        return None
    return min(1.0, max(0.0, math.log10(milliseconds) / (len(DECADES) - 1)))


def _panel(top: float, title: str, levels: Sequence[str], end_s: float) -> str:
    """Returns grid and numbers of a diagram whose levels have equal distances."""
    bottom, distance = top + PANEL_HEIGHT, PANEL_HEIGHT / (len(levels) - 1)
    parts = [f'<text x="{LEFT}" y="{top - 8}">{title}</text>']
    for number, level in enumerate(levels):
        y = bottom - distance * number
        parts.append(
            f'<path d="M{LEFT} {y:g}H{WIDTH - RIGHT}" stroke="{GRID}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:g}" text-anchor="end">{level}</text>'
        )
    for quarter in range(5):
        x = _x(end_s * quarter / 4, end_s)
        parts.append(
            f'<path d="M{x:.1f} {top}V{bottom}" stroke="{GRID}"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{end_s * quarter / 4:g} s</text>"
        )
    return "".join(parts)


def _steps(
    starts: Sequence[float],
    shares: Sequence[float | None],
    top: float,
    end_s: float,
    width_s: float,
    color: str,
) -> str:
    """Returns a line with a level for each window; it breaks off where a window has no value."""
    path, pen = "", "M"
    for at_s, share in zip(starts, shares, strict=True):
        if share is None:
            pen = "M"
            continue
        y = top + PANEL_HEIGHT * (1 - share)
        path += f"{pen}{_x(at_s, end_s):.1f} {y:.1f}H{_x(at_s + width_s, end_s):.1f}"
        pen = "L"
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"/>'


def _mark(restart: Restart, end_s: float, second: float) -> str:
    """Returns the line of a restart through both diagrams, with the name of the process."""
    x = _x(restart.at_s, end_s)
    return (
        f'<path d="M{x:.1f} 26V{TOP + PANEL_HEIGHT}M{x:.1f} {second}v{PANEL_HEIGHT}" '
        f'stroke="{MARK}" stroke-dasharray="4 3"/>'
        f'<text x="{x:.1f}" y="18" text-anchor="middle" fill="{MARK}">{restart.process}</text>'
    )


def _x(at_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at_s / end_s

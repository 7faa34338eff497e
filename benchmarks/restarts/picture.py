"""A picture of a restart drill as SVG: hit ratio and first tokens over time. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.restarts.restarting import Restart
from benchmarks.restarts.windows import Window

WIDTH, PANEL_HEIGHT, LEFT, RIGHT, TOP, GAP = 760, 170, 56, 16, 50, 46
HITS, MEDIAN, TAIL, MARK, GRID, TEXT = (
    "#1a7f37",
    "#1f6feb",
    "#9a6700",
    "#cf222e",
    "#d8dee4",
    "#24292f",
)


def picture_of(windows: Sequence[Window], restarts: Sequence[Restart], width_s: float) -> str:
    """Returns an SVG document: above the hit ratio, below p50 and p90 of first tokens. A vertical
    line says when a process was killed."""
    end_s = windows[-1].at_s + width_s
    highest_ms = max(window.p90_ms or 0.0 for window in windows) or 1.0
    second = TOP + PANEL_HEIGHT + GAP
    height = second + PANEL_HEIGHT + 40
    parts = [
        _panel(TOP, "hit ratio", 1.0, end_s),
        _steps(windows, [w.hit_ratio for w in windows], TOP, 1.0, end_s, width_s, HITS),
        _panel(second, "first token, ms: p50 blue, p90 brown", highest_ms, end_s),
        _steps(windows, [w.p90_ms for w in windows], second, highest_ms, end_s, width_s, TAIL),
        _steps(windows, [w.p50_ms for w in windows], second, highest_ms, end_s, width_s, MEDIAN),
        *(_mark(one, end_s, height) for one in restarts),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{TEXT}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _panel(top: float, title: str, highest: float, end_s: float) -> str:
    """Returns grid and numbers of a diagram of values from 0 to `highest`."""
    bottom = top + PANEL_HEIGHT
    parts = [f'<text x="{LEFT}" y="{top - 8}">{title}</text>']
    for quarter in range(5):
        y, x = bottom - PANEL_HEIGHT * quarter / 4, _x(end_s * quarter / 4, end_s)
        parts.append(
            f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}M{x:.1f} {top}V{bottom}" stroke="{GRID}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{highest * quarter / 4:.3g}</text>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{end_s * quarter / 4:g} s</text>"
        )
    return "".join(parts)


def _steps(
    windows: Sequence[Window],
    values: Sequence[float | None],
    top: float,
    highest: float,
    end_s: float,
    width_s: float,
    color: str,
) -> str:
    """Returns a line with a level for each window that has a value."""
    path = ""
    for window, value in zip(windows, values, strict=True):
        if value is not None:
            y = top + PANEL_HEIGHT * (1 - value / highest)
            pen = "L" if path else "M"
            path += f"{pen}{_x(window.at_s, end_s):.1f} {y:.1f}"
            path += f"H{_x(window.at_s + width_s, end_s):.1f}"
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"/>'


def _mark(restart: Restart, end_s: float, height: float) -> str:
    x = _x(restart.at_s, end_s)
    return (
        f'<path d="M{x:.1f} 26V{height - 30}" stroke="{MARK}" stroke-dasharray="4 3"/>'
        f'<text x="{x:.1f}" y="18" text-anchor="middle" fill="{MARK}">{restart.process}</text>'
    )


def _x(at_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at_s / end_s

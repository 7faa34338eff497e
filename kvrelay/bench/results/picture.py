"""A picture of a run as SVG: how latencies are distributed, and how load went over time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import accumulate

from kvrelay.bench.results.percentiles import percentile
from kvrelay.bench.results.record import AnswerRecord
from kvrelay.bench.results.slo import Slo

WIDTH, HEIGHT = 420, 230
MARGIN_LEFT, MARGIN_TOP, MARGIN_BOTTOM, MARGIN_RIGHT = 52, 34, 36, 16
NUM_POINTS = 200
LINE, LIMIT, GRID = "#1f6feb", "#d1242f", "#d8dee4"

Point = tuple[float, float]


def picture_of(title: str, records: Sequence[AnswerRecord], slos: Sequence[Slo]) -> str:
    """Returns an SVG document: distributions of TTFT, ITL and E2E with the limits of `slos`, and
    running requests and tokens a second over time."""
    good = [record for record in records if not record.failure]
    limits = {slo.kind: slo.limit_ms for slo in slos}
    ttfts = [record.ttft_s * 1e3 for record in good if record.ttft_s is not None]
    gaps = [gap_s * 1e3 for record in good for gap_s in record.gaps_s]
    panels = [
        _panel("TTFT, ms (share of requests)", _distribution(ttfts), limits.get("ttft")),
        _panel("ITL, ms (share of tokens)", _distribution(gaps), limits.get("itl")),
        _panel(
            "E2E, ms (share of requests)",
            _distribution([record.e2e_s * 1e3 for record in good]),
            limits.get("e2e"),
        ),
        _panel("running requests over seconds", _running(records), None),
        _panel("tokens a second over seconds", _token_rates(good), None),
    ]
    placed = "".join(
        f'<g transform="translate({WIDTH * (i % 2)},{40 + HEIGHT * (i // 2)})">{panel}</g>'
        for i, panel in enumerate(panels)
    )
    num_failed = len(records) - len(good)
    heading = f"{title} – {len(records)} requests, {num_failed} failed"
    height = 40 + HEIGHT * ((len(panels) + 1) // 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {height}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="16" y="24" font-size="14">{escape(heading)}</text>{placed}</svg>\n'
    )


def _panel(title: str, points: Sequence[Point], limit: float | None) -> str:
    """Returns one diagram: a line through `points`, and a vertical one at `limit`."""
    parts = [f'<text x="{MARGIN_LEFT}" y="20" font-size="12">{escape(title)}</text>']
    if not points:
        return parts[0] + f'<text x="{MARGIN_LEFT}" y="60">nothing to show</text>'
    max_x = max([*(x for x, _ in points), limit or 0.0]) or 1.0
    max_y = max(y for _, y in points) or 1.0

    def place_x(x: float) -> float:
        return MARGIN_LEFT + (WIDTH - MARGIN_LEFT - MARGIN_RIGHT) * x / max_x

    def place_y(y: float) -> float:
        return HEIGHT - MARGIN_BOTTOM - (HEIGHT - MARGIN_TOP - MARGIN_BOTTOM) * y / max_y

    parts += _grid(max_x, max_y, place_x, place_y)
    line = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.5"/>')
    if limit is not None:
        parts.append(
            f'<line x1="{place_x(limit):.1f}" x2="{place_x(limit):.1f}" y1="{MARGIN_TOP}" '
            f'y2="{HEIGHT - MARGIN_BOTTOM}" stroke="{LIMIT}" stroke-dasharray="4 3"/>'
        )
    return "".join(parts)


def _grid(
    max_x: float, max_y: float, place_x: Callable[[float], float], place_y: Callable[[float], float]
) -> list[str]:
    """Returns lines and numbers at quarters of both axes."""
    parts = []
    bottom, right = HEIGHT - MARGIN_BOTTOM, WIDTH - MARGIN_RIGHT
    for quarter in range(5):
        x, y = place_x(max_x * quarter / 4), place_y(max_y * quarter / 4)
        parts.append(
            f'<path d="M{x:.1f} {MARGIN_TOP}V{bottom}M{MARGIN_LEFT} {y:.1f}H{right}" '
            f'stroke="{GRID}" fill="none"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{_short(max_x * quarter / 4)}</text>"
            f'<text x="{MARGIN_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{_short(max_y * quarter / 4)}</text>"
        )
    return parts


def _distribution(values: Sequence[float]) -> list[Point]:
    """Returns points of the cumulative distribution: value, share of values up to it."""
    ordered = sorted(values)
    shares = [number / NUM_POINTS for number in range(NUM_POINTS + 1)]
    return [(percentile(ordered, share), share) for share in shares] if ordered else []


def _running(records: Sequence[AnswerRecord]) -> list[Point]:
    """Returns how many requests ran at each moment at which that changed."""
    changes = sorted([(r.sent_s, 1) for r in records] + [(r.ended_s, -1) for r in records])
    counts = accumulate(change for _, change in changes)
    return [(at_s, count) for (at_s, _), count in zip(changes, counts, strict=True)]


def _token_rates(records: Sequence[AnswerRecord]) -> list[Point]:
    """Returns the tokens that came in each second."""
    seconds: dict[int, int] = {}
    for record in records:
        if record.first_s is None:
            continue
        for at_s in accumulate(record.gaps_s, initial=record.first_s):
            seconds[int(at_s)] = seconds.get(int(at_s), 0) + 1
    return [(second, seconds.get(second, 0)) for second in range(max(seconds, default=-1) + 1)]


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"

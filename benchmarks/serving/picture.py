"""A picture of pairs as SVG: a bar for each ratio, beside the line of equal systems. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.serving.figures import MORE_IS_BETTER
from benchmarks.serving.pairs import Pair

SHOWN = {
    "ttft_mean_ms": "TTFT mean",
    "ttft_p99_ms": "TTFT p99",
    "itl_p99_ms": "ITL p99",
    "tokens_per_s": "tokens/s",
}
LABEL_WIDTH, BAR_WIDTH, RIGHT, ROW_HEIGHT, HEADING = 190, 420, 70, 15, 40
REACH = 8.0
"""A bar of this ratio, or of its inverse, has half the width; longer ones are cut there."""
BETTER, WORSE, GRID, TEXT = "#1a7f37", "#cf222e", "#8c959f", "#24292f"


def picture_of(pairs: Sequence[Pair]) -> str:
    """Returns an SVG document. Each pair has a panel; a bar to the right of the line is kvrelay's
    lead, one to the left that of the peer, on a logarithmic scale. Pairs without a peer are left
    out."""
    parts: list[str] = []
    top = 0
    for pair in (pair for pair in pairs if pair["ratios"]):
        panel, height = _panel(pair)
        parts.append(f'<g transform="translate(0,{top})">{panel}</g>')
        top += height
    width = LABEL_WIDTH + BAR_WIDTH + RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {max(top, HEADING)}" '
        f'font-family="sans-serif" font-size="11" fill="{TEXT}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def lead_of(name: str, ratio: float) -> float:
    """Returns how many times better kvrelay is in a figure, from ours ÷ theirs."""
    return ratio if name in MORE_IS_BETTER else 1 / ratio


def _panel(pair: Pair) -> tuple[str, int]:
    """Returns the bars of one pair, and their height."""
    title = f"kvrelay {pair['layout']} beside {pair['peer']}: how many times better"
    parts = [f'<text x="12" y="24" font-size="13">{escape(title)}</text>']
    y = HEADING
    for row, ratios in pair["ratios"].items():
        for name, label in SHOWN.items():
            if ratios.get(name):
                parts.append(_bar(f"{row}, {label}", lead_of(name, ratios[name]), y))
                y += ROW_HEIGHT
        y += ROW_HEIGHT // 3
    middle = LABEL_WIDTH + BAR_WIDTH / 2
    parts.append(f'<path d="M{middle} {HEADING - 8}V{y}" stroke="{GRID}"/>')
    return "".join(parts), y + ROW_HEIGHT


def _bar(label: str, lead: float, y: int) -> str:
    middle = LABEL_WIDTH + BAR_WIDTH / 2
    share = max(-1.0, min(1.0, math.log(lead) / math.log(REACH)))
    length = abs(share) * BAR_WIDTH / 2
    left = middle if share >= 0 else middle - length
    color = BETTER if share >= 0 else WORSE
    return (
        f'<text x="{LABEL_WIDTH - 8}" y="{y + 10}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{left:.1f}" y="{y + 2}" width="{max(length, 0.5):.1f}" '
        f'height="{ROW_HEIGHT - 5}" fill="{color}"/>'
        f'<text x="{LABEL_WIDTH + BAR_WIDTH + 8}" y="{y + 10}">{lead:.2f}×</text>'
    )

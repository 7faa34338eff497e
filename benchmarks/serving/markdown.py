"""Cells and lines of the Markdown tables that are made of pairs. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def number_cell(value: float | None) -> str:
    """Returns a figure with as many digits as a reader wants; a dash for one that is missing."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def table_line(cells: Sequence[str]) -> str:
    """Returns one line of a table."""
    return f"| {' | '.join(cells)} |"

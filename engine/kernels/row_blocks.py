"""Cuts the rows of a product into blocks of a few sizes. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def blocks(num_rows: int, sizes: Sequence[int]) -> list[int]:
    """Returns the bounds of blocks of the largest size, and of one of the smallest size that holds
    the rest, so that the last bound may lie beyond `num_rows`. `sizes` ascend."""
    bounds = list(range(0, num_rows + 1, sizes[-1]))
    rest = num_rows - bounds[-1]
    if rest:
        bounds.append(bounds[-1] + next(n for n in sizes if n >= rest))
    return bounds

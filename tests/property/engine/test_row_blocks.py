"""Blocks of rows that deterministic products are computed in."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.deterministic_kernels import (
    CPU_SIZES,
)
from engine.kernels.row_blocks import blocks


@given(num_rows=st.integers(1, 700), sizes=st.sets(st.sampled_from(CPU_SIZES[:-1])))
def test_blocks_hold_all_rows(num_rows: int, sizes: set[int]) -> None:
    allowed = [*sorted(sizes), CPU_SIZES[-1]]
    bounds = blocks(num_rows, allowed)
    lengths = [end - begin for begin, end in pairwise(bounds)]
    assert bounds[0] == 0 and set(lengths) <= set(allowed)
    assert num_rows <= bounds[-1] and num_rows > bounds[-2]

"""`ProductPlan`: how the programs of a kernel share a product with a packed weight. Pure.

A plan follows from shapes alone, so that a CUDA graph can hold the product and the warm-up of a
node meets every plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

LEAST_ROWS = 8
"""Tensor cores take no fewer."""
MOST_ROWS = 128
"""More rows than these are left to the vendor's library, with the weight unpacked."""
MULTIPROCESSORS = 132
"""Of a Hopper GPU. Fewer programs leave memory idle."""
MOST_SPLITS = 8
LEAST_TILES_OF_A_SPLIT = 4
LINE_BYTES = 128
MOST_PREFETCHED_BYTES = 2048


@dataclass(frozen=True)
class ProductPlan:
    """The part of one program: some rows of `x` times some outputs of the weight, over some of the
    inputs."""

    rows: int
    """The rows of a program; a power of two from 8 on."""
    outputs: int
    """The outputs of a program; a power of two from 16 on."""
    slices: int
    """Each warp sums over inputs of its own, one of so many neighbouring slices, and the program
    adds them up; 1: all warps share the inputs, and the outputs lie with different warps."""
    splits: int
    """The programs that share the inputs of the same outputs; a second kernel adds them up."""
    num_warps: int
    num_stages: int
    """How many tiles of the weight are on their way at once."""
    prefetches: bool = True
    """Whether a program brings the weight near while the kernels before it still run."""


PlanKind = Literal["int4", "int8", "fp8"]


class Tiling(NamedTuple):
    """How programs for at most some rows are cut: fields of `ProductPlan`, and how many splits to
    make of the inputs."""

    outputs: int
    slices: int
    num_warps: int
    num_stages: int
    programs: int = 1
    """The splits are so many that there are about this many programs."""
    least_splits: int = 1
    most_splits: int = MOST_SPLITS


class Tilings(NamedTuple):
    """The tilings for most weights, and for wide ones."""

    narrow: Tiling
    wide: Tiling | None = None
    """None: the same."""


TILINGS: dict[PlanKind, dict[int, Tilings]] = {
    "int4": {
        8: Tilings(Tiling(64, 1, 4, 4, 16 * MULTIPROCESSORS)),
        16: Tilings(Tiling(64, 1, 2, 4, 8 * MULTIPROCESSORS, most_splits=4)),
        32: Tilings(Tiling(128, 1, 8, 4, 2 * MULTIPROCESSORS), Tiling(128, 1, 4, 3, 1, 2)),
        64: Tilings(Tiling(128, 1, 8, 4, MULTIPROCESSORS), Tiling(128, 1, 4, 3, 1, 2)),
        128: Tilings(Tiling(128, 1, 8, 3, MULTIPROCESSORS)),
    },
    "int8": {
        16: Tilings(Tiling(16, 4, 4, 4)),
        32: Tilings(Tiling(16, 4, 4, 3), Tiling(64, 1, 2, 3)),
        64: Tilings(Tiling(64, 1, 4, 4, 2 * MULTIPROCESSORS)),
        128: Tilings(Tiling(128, 1, 8, 3, MULTIPROCESSORS)),
    },
    "fp8": {
        8: Tilings(Tiling(16, 4, 4, 6)),
        16: Tilings(Tiling(16, 4, 4, 4)),
        32: Tilings(Tiling(16, 4, 4, 3)),
        64: Tilings(Tiling(64, 1, 4, 4, 2 * MULTIPROCESSORS)),
        128: Tilings(Tiling(64, 1, 4, 3, 2 * MULTIPROCESSORS)),
    },
}
"""The fastest on an H200 over the four weights of a layer of Llama 3 8B, by the most rows that each
is for (decision 0051)."""
WIDE_OUTPUTS = 128 * MULTIPROCESSORS
"""A weight with so many outputs is a wide one."""
LONG_INPUTS = 64
"""With so many tiles of inputs, eight warps share them where each warp has slices of its own, if
the rows are no more than `MOST_ROWS_OF_LONG_INPUTS`."""
MOST_ROWS_OF_LONG_INPUTS = 16


def plan_product(kind: PlanKind, num_rows: int, num_out: int, num_tiles: int) -> ProductPlan:
    """Returns the plan for a product with a weight of `num_out` outputs, whose inputs make
    `num_tiles` tiles."""
    rows = min(MOST_ROWS, power_of_two(max(LEAST_ROWS, num_rows)))
    tilings = TILINGS[kind][min(most for most in TILINGS[kind] if most >= rows)]
    tiling = tilings.narrow
    if tilings.wide is not None and num_out >= WIDE_OUTPUTS:
        tiling = tilings.wide
    is_long = num_tiles >= LONG_INPUTS and rows <= MOST_ROWS_OF_LONG_INPUTS
    if tiling.slices > 1 and is_long:
        return ProductPlan(rows, tiling.outputs, 8, 1, 8, min(4, tiling.num_stages))
    programs = -(-num_out // tiling.outputs) * -(-num_rows // rows)
    splits = max(tiling.least_splits, min(tiling.most_splits, tiling.programs // programs))
    return ProductPlan(
        rows,
        tiling.outputs,
        tiling.slices,
        _power_of_two_below(min(splits, num_tiles // LEAST_TILES_OF_A_SPLIT)),
        tiling.num_warps,
        tiling.num_stages,
    )


def _power_of_two_below(number: int) -> int:
    """Returns the largest power of two that is not more than `number`, and at least 1."""
    return 1 << (max(1, number).bit_length() - 1)


def power_of_two(number: int) -> int:
    """Returns the least power of two that is not less than `number`."""
    return 1 << (number - 1).bit_length()


def num_row_tiles(num_rows: int, rows: int, num_groups: int | None) -> int:
    """Returns how many tiles of `rows` rows there are at most. Each group begins a tile; None:
    there are no groups."""
    if num_groups is None:
        return -(-num_rows // rows)
    return num_rows // rows + min(num_groups, num_rows)


def prefetched_bytes(plan: ProductPlan, row_bytes: int) -> int:
    """Returns how many bytes of each output a program brings near: a power of two, no more than
    the program reads, or 0."""
    share = min(MOST_PREFETCHED_BYTES, row_bytes // plan.splits)
    if not plan.prefetches or share < LINE_BYTES:
        return 0
    return 1 << (share.bit_length() - 1)

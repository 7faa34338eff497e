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
PROGRAMS = 264
"""Two for each multiprocessor of a Hopper GPU: fewer leave memory idle."""
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
    programs: int
    """The splits are so many that there are about this many programs."""


ONE_SPLIT = 1
ALL_SPLITS = 1 << 30
TILINGS: dict[PlanKind, dict[int, Tiling]] = {
    "int4": {
        8: Tiling(64, 1, 4, 4, ALL_SPLITS),
        16: Tiling(64, 1, 2, 4, 2 * PROGRAMS),
        32: Tiling(64, 1, 2, 4, 2 * PROGRAMS),
        64: Tiling(128, 1, 8, 4, PROGRAMS),
        128: Tiling(128, 1, 8, 3, PROGRAMS),
    },
    "int8": {
        16: Tiling(16, 4, 4, 4, ONE_SPLIT),
        32: Tiling(16, 4, 4, 3, ONE_SPLIT),
        64: Tiling(64, 1, 4, 4, PROGRAMS),
        128: Tiling(64, 1, 4, 3, PROGRAMS),
    },
    "fp8": {
        8: Tiling(16, 4, 4, 6, ONE_SPLIT),
        16: Tiling(16, 4, 4, 4, ONE_SPLIT),
        32: Tiling(16, 4, 4, 3, ONE_SPLIT),
        64: Tiling(64, 1, 4, 4, PROGRAMS),
        128: Tiling(64, 1, 4, 3, PROGRAMS),
    },
}
"""The fastest on an H200 over the four weights of a layer of Llama 3 8B, by the most rows that each
is for (decision 0051)."""
LONG_INPUTS = 64
"""With so many tiles of inputs, eight warps share them where each warp has slices of its own."""


def plan_product(kind: PlanKind, num_rows: int, num_out: int, num_tiles: int) -> ProductPlan:
    """Returns the plan for a product with a weight of `num_out` outputs, whose inputs make
    `num_tiles` tiles."""
    rows = min(MOST_ROWS, power_of_two(max(LEAST_ROWS, num_rows)))
    tilings = TILINGS[kind]
    tiling = tilings[min(most for most in tilings if most >= rows)]
    if tiling.slices > 1 and num_tiles >= LONG_INPUTS:
        return ProductPlan(rows, tiling.outputs, 8, 1, 8, min(4, tiling.num_stages))
    programs = -(-num_out // tiling.outputs) * -(-num_rows // rows)
    splits = min(MOST_SPLITS, tiling.programs // programs, num_tiles // LEAST_TILES_OF_A_SPLIT)
    return ProductPlan(
        rows,
        tiling.outputs,
        tiling.slices,
        _power_of_two_below(splits),
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

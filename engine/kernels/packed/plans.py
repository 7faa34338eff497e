"""`ProductPlan`: how the programs of a kernel share a product with a packed weight. Pure.

A plan follows from shapes alone, so that a CUDA graph can hold the product and the warm-up of a
node meets every plan.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_ROWS = 8
"""Tensor cores take no fewer."""
MOST_ROWS = 128
"""More rows than these are left to the vendor's library, with the weight unpacked."""
PROGRAMS = 264
"""Two for each multiprocessor of a Hopper GPU: fewer leave memory idle."""
MOST_SPLITS = 8
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


def plan_product(num_rows: int, num_out: int, num_steps: int) -> ProductPlan:
    """Returns the plan for a product with a weight of `num_out` outputs, whose inputs make
    `num_steps` tiles."""
    rows = min(MOST_ROWS, power_of_two(max(LEAST_ROWS, num_rows)))
    if rows <= 16:
        slices = 8 if num_steps >= 64 else 4
        return ProductPlan(rows, 16, slices, 1, slices, 4)
    outputs = 64
    programs = -(-num_out // outputs) * -(-num_rows // rows)
    splits = max(1, min(MOST_SPLITS, PROGRAMS // programs, num_steps // 4))
    return ProductPlan(rows, outputs, 1, splits, 4, 4 if rows < 128 else 3)


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

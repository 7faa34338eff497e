"""What the kernels of all packed layouts have in common: which rows a program has, and how it gives
its sums away."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def rows_of_tile(
    ends,
    tile,
    num_rows,
    num_groups,
    ROWS: tl.constexpr,
    IS_GROUPED: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
):
    """Returns (group, first row, end of the rows) of a tile of at most ROWS rows of one group.

    The tiles of a group come behind those of the groups before it. A tile beyond the last one has
    no rows. Without groups, all rows are of group 0.
    """
    group = 0
    first = tile * ROWS
    end = num_rows
    if IS_GROUPED:
        groups = tl.arange(0, GROUPS_BLOCK)
        is_group = groups < num_groups
        group_ends = tl.load(ends + groups, mask=is_group, other=0)
        begins = tl.load(ends + groups - 1, mask=is_group & (groups > 0), other=0)
        tiles = tl.where(is_group, (group_ends - begins + ROWS - 1) // ROWS, 0)
        tiles_until = tl.cumsum(tiles, 0)
        group = tl.sum((is_group & (tiles_until <= tile)).to(tl.int32), 0)
        is_tile = group < num_groups
        group = tl.minimum(group, num_groups - 1)
        tiles_before = tl.sum(tl.where(groups < group, tiles, 0), 0)
        begin = tl.sum(tl.where(groups == group, begins, 0), 0)
        end = tl.sum(tl.where(groups == group, group_ends, 0), 0)
        first = begin + (tile - tiles_before) * ROWS
        end = tl.where(is_tile, end, first)
    return group, first, end


@triton.jit
def begin_dependent(IS_DEPENDENT: tl.constexpr):
    """Lets the next kernel in; see `engine/dependent_launch.py`."""
    if IS_DEPENDENT:
        gdc_launch_dependents()


@triton.jit
def wait_for_inputs(IS_DEPENDENT: tl.constexpr):
    """Returns when the kernels before this one have ended. What is read before is a weight."""
    if IS_DEPENDENT:
        gdc_wait()


@triton.jit
def prefetch_rows(rows, NUM_BYTES: tl.constexpr):
    """Brings the next NUM_BYTES, a power of two, of each of the rows of a weight into the cache
    that all multiprocessors share, while the kernels before this one still run. What lies behind
    the last byte of a tensor is its neighbour, or is not fetched: a prefetch cannot fail."""
    if NUM_BYTES > 0:
        at = rows[:, None] + tl.arange(0, NUM_BYTES // 128)[None, :] * 128
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [at.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def of_groups(
    numbers, row_begins, first_tile, num_tiles, GROUP_TILES: tl.constexpr, SLICES: tl.constexpr
):
    """Returns the numbers that SLICES tiles, from `first_tile` on, have for each output: [slices,
    outputs, 1], or [outputs, 1] of one slice. Those of an output begin at `row_begins`, one for
    each GROUP_TILES tiles."""
    if SLICES == 1:
        at = numbers + row_begins + first_tile // GROUP_TILES
        found = tl.load(at, mask=first_tile < num_tiles, other=0)[:, None]
    else:
        tiles = first_tile + tl.arange(0, SLICES)
        at = numbers + row_begins[None, :, None] + (tiles // GROUP_TILES)[:, None, None]
        found = tl.load(at, mask=(tiles < num_tiles)[:, None, None], other=0)
    return found


@triton.jit
def multiply(left, right, IS_INTERPRETED: tl.constexpr):
    """Returns the float32 product of two tiles of one dtype."""
    if IS_INTERPRETED:  # the interpreter would multiply the bits of bfloat16 and FP8 as integers
        product = tl.dot(left.to(tl.float32), right.to(tl.float32))
    else:
        product = tl.dot(left, right)
    return product


@triton.jit
def store_sums(
    sums,
    output,
    partial,
    bias,
    outputs,
    rows,
    end,
    num_out,
    num_rows,
    split,
    IS_SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Writes [outputs, rows] sums: rounded, with the bias, into `output` [rows, out]; or as they
    are into `partial` [splits, rows, out], if other programs have the rest of the sum."""
    inside = (outputs < num_out)[:, None] & (rows < end)[None, :]
    at = rows[None, :].to(tl.int64) * num_out + outputs[:, None]
    if IS_SPLIT:
        tl.store(partial + split.to(tl.int64) * num_rows * num_out + at, sums, mask=inside)
    else:
        if HAS_BIAS:
            added = tl.load(bias + outputs, mask=outputs < num_out, other=0.0)
            sums += added.to(tl.float32)[:, None]
        tl.store(output + at, sums.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_sums"])
def add_splits_kernel(
    partial,
    bias,
    output,
    num_sums,
    num_out,
    SPLITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Adds up `partial` [splits, rows, out] in the order of the splits, and the bias."""
    begin_dependent(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_sums
    sums = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        sums += tl.load(partial + split * num_sums.to(tl.int64) + at, mask=inside, other=0.0)
    if HAS_BIAS:
        sums += tl.load(bias + at % num_out, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, sums.to(output.dtype.element_ty), mask=inside)

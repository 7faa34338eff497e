"""The kernel that multiplies an `IntegerWeight` without unpacking it in memory.

Tensor cores do the products, even for one row: four-bit values become numbers in one instruction or
two, and nothing else could keep up with memory. The weight is their left operand, so few rows cost
little. Values are exact in 16 bits; the scale of a group is applied, in float32, to its sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.packed.tiles import (
    begin_dependent,
    multiply,
    of_groups,
    prefetch_rows,
    rows_of_tile,
    store_sums,
    wait_for_inputs,
)
from engine.kernels.packed.unpacking import (
    HALF_RUN,
    nibbles,
    ones_like,
    raise_of,
    raised_nibbles,
    signed_bytes,
)


@triton.jit(do_not_specialize=["num_rows", "num_groups"])
def integer_kernel(
    x,
    values,
    scales,
    zeros,
    bias,
    output,
    partial,
    ends,
    num_rows,
    num_out,
    num_tiles,
    row_bytes,
    scales_stride,
    num_groups,
    GROUP_TILES: tl.constexpr,
    BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_GROUPED: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    SLICES: tl.constexpr,
    SPLITS: tl.constexpr,
    IS_EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCHED_BYTES: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """Each program multiplies ROWS rows and OUTPUTS outputs over one of SPLITS parts of the inputs,
    in SLICES tiles of INPUTS inputs at a time. GROUP_TILES such tiles share a scale."""
    begin_dependent(IS_DEPENDENT)
    TILE_BYTES: tl.constexpr = INPUTS * BITS // 8
    dtype: tl.constexpr = x.dtype.element_ty
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    safe = tl.minimum(outputs, num_out - 1).to(tl.int64)
    split = tl.program_id(2)
    steps = tl.cdiv(num_tiles, SLICES)
    share = tl.cdiv(steps, SPLITS)
    begin, stop = split * share, tl.minimum(steps, (split + 1) * share)
    if IS_DEPENDENT and not IS_GROUPED:
        its_bytes = values + safe * row_bytes + begin * (SLICES * TILE_BYTES)
        prefetch_rows(its_bytes, PREFETCHED_BYTES)
    wait_for_inputs(IS_DEPENDENT)
    group, first, end = rows_of_tile(
        ends, tl.program_id(1), num_rows, num_groups, ROWS, IS_GROUPED, GROUPS_BLOCK
    )
    if first >= end:
        return
    weight_rows = safe
    if IS_GROUPED:
        weight_rows += group.to(tl.int64) * num_out
    slices = tl.arange(0, SLICES)
    places = tl.arange(0, TILE_BYTES)
    rows = first + tl.arange(0, ROWS)
    is_row = (rows < end)[None, None, :]
    of_values = (
        values
        + (weight_rows * row_bytes)[None, :, None]
        + slices[:, None, None] * TILE_BYTES
        + places[None, None, :]
    )
    inputs = places
    if BITS == 4:
        inputs = places // HALF_RUN * (2 * HALF_RUN) + places % HALF_RUN
    x_rows = rows.to(tl.int64) * (num_tiles * INPUTS)
    of_x = x + x_rows[None, None, :] + slices[:, None, None] * INPUTS + inputs[None, :, None]
    groups = weight_rows * scales_stride
    sums = tl.zeros([SLICES, OUTPUTS, ROWS], tl.float32)
    if SLICES == 1:  # a product of matrices, whose outputs lie with different warps
        sums = tl.reshape(sums, [OUTPUTS, ROWS])
    # A scale is read one step ahead: unlike tiles, it is not fetched by the loop's pipeline.
    tile = begin * SLICES
    next_scale = of_groups(scales, groups, tile, num_tiles, GROUP_TILES, SLICES)
    if HAS_ZEROS:
        next_zero = of_groups(zeros, groups, tile, num_tiles, GROUP_TILES, SLICES)
    for step in tl.range(begin, stop, num_stages=STAGES):
        scale = next_scale.to(tl.float32)
        if HAS_ZEROS:
            zero = next_zero.to(tl.float32)
            if BITS == 4:
                zero += raise_of(dtype)
        tile = (step + 1) * SLICES
        next_scale = of_groups(scales, groups, tile, num_tiles, GROUP_TILES, SLICES)
        if HAS_ZEROS:
            next_zero = of_groups(zeros, groups, tile, num_tiles, GROUP_TILES, SLICES)
        at = step * SLICES
        if IS_EVEN:
            packed = tl.load(of_values + at * TILE_BYTES)
            x_low = tl.load(of_x + at * INPUTS, mask=is_row, other=0.0)
        else:
            is_own = (at + slices < num_tiles)[:, None, None]
            packed = tl.load(of_values + at * TILE_BYTES, mask=is_own, other=0)
            x_low = tl.load(of_x + at * INPUTS, mask=is_row & is_own, other=0.0)
        if SLICES == 1:
            packed = tl.reshape(packed, [OUTPUTS, TILE_BYTES])
            x_low = tl.reshape(x_low, [TILE_BYTES, ROWS])
        if BITS == 4:
            if IS_EVEN:
                x_high = tl.load(of_x + (at * INPUTS + HALF_RUN), mask=is_row, other=0.0)
            else:
                is_own = (at + slices < num_tiles)[:, None, None]
                x_high = tl.load(of_x + (at * INPUTS + HALF_RUN), mask=is_row & is_own, other=0.0)
            if SLICES == 1:
                x_high = tl.reshape(x_high, [TILE_BYTES, ROWS])
            if HAS_ZEROS:  # sums of x are needed anyway, and take away more than zeros as well
                low, high = raised_nibbles(packed, dtype, IS_INTERPRETED)
            else:
                low, high = nibbles(packed, dtype, IS_INTERPRETED)
            product = multiply(low, x_low, IS_INTERPRETED)
            product += multiply(high, x_high, IS_INTERPRETED)
            if HAS_ZEROS:
                ones = ones_like(packed, dtype, IS_INTERPRETED)
                x_sums = multiply(ones, x_low, IS_INTERPRETED)
                x_sums += multiply(ones, x_high, IS_INTERPRETED)
        else:
            number = signed_bytes(packed, dtype, IS_INTERPRETED)
            product = multiply(number, x_low, IS_INTERPRETED)
            if HAS_ZEROS:
                ones = ones_like(packed, dtype, IS_INTERPRETED)
                x_sums = multiply(ones, x_low, IS_INTERPRETED)
        if HAS_ZEROS:
            product -= zero * x_sums
        sums += product * scale
    if SLICES > 1:
        sums = tl.sum(sums, 0)
    store_sums(
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
        SPLITS > 1,
        HAS_BIAS,
    )

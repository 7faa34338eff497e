"""The kernel that multiplies an `IntegerWeight` without unpacking it in memory.

Tensor cores do the products, even for one row: four-bit values become numbers in one instruction or
two, and nothing else could keep up with memory. The weight is their left operand, so few rows cost
little. Values are exact in 16 bits; the scale of a group is applied, in float32, to its sum, and
one scale of all groups to the sum of all.
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

# The name that the kernel reads must be a constant of Triton.
ROWS_SUBTRACTED_FIRST: tl.constexpr = tl.constexpr(32)
"""From so many rows on, zeros are taken from the values themselves. For fewer, zeros times the sum
of `x` are taken from sums: the tensor cores add `x` up in less time than that takes."""


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
    HAS_GROUPS: tl.constexpr,
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
    in SLICES tiles of INPUTS inputs at a time. GROUP_TILES such tiles share a scale; without
    HAS_GROUPS, all tiles do."""
    begin_dependent(IS_DEPENDENT)
    SUBTRACTS_FIRST: tl.constexpr = HAS_ZEROS and BITS == 4 and ROWS >= ROWS_SUBTRACTED_FIRST
    SUMS_X: tl.constexpr = HAS_ZEROS and not SUBTRACTS_FIRST
    SCALES_LAST: tl.constexpr = SLICES == 1 and not HAS_GROUPS and not SUMS_X
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
    inputs = places
    if BITS == 4:
        inputs = places // HALF_RUN * (2 * HALF_RUN) + places % HALF_RUN
    its_values = values + weight_rows * row_bytes
    its_x = x + rows.to(tl.int64) * (num_tiles * INPUTS)
    # With one slice, tiles are born as matrices: of reshaped ones the pipeline would copy `x` once
    # more, from shared memory to where tensor cores read it.
    if SLICES == 1:
        is_row = (rows < end)[None, :]
        of_values = its_values[:, None] + places[None, :]
        of_x = its_x[None, :] + inputs[:, None]
        sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
    else:
        is_row = (rows < end)[None, None, :]
        of_slices = slices[:, None, None]
        of_values = its_values[None, :, None] + of_slices * TILE_BYTES + places[None, None, :]
        of_x = its_x[None, None, :] + of_slices * INPUTS + inputs[None, :, None]
        sums = tl.zeros([SLICES, OUTPUTS, ROWS], tl.float32)
    groups = weight_rows * scales_stride
    # A scale is read one step ahead: unlike tiles, it is not fetched by the loop's pipeline.
    tile = begin * SLICES
    if not SCALES_LAST:
        next_scale = of_groups(scales, groups, tile, num_tiles, GROUP_TILES, SLICES)
    if HAS_ZEROS:
        next_zero = of_groups(zeros, groups, tile, num_tiles, GROUP_TILES, SLICES)
    for step in tl.range(begin, stop, num_stages=STAGES):
        if not SCALES_LAST:
            scale = next_scale.to(tl.float32)
        if HAS_ZEROS:
            zero = next_zero.to(tl.float32)
            if BITS == 4:
                zero += raise_of(dtype)
        tile = (step + 1) * SLICES
        if not SCALES_LAST:
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
        if BITS == 4:
            if IS_EVEN:
                x_high = tl.load(of_x + (at * INPUTS + HALF_RUN), mask=is_row, other=0.0)
            else:
                is_own = (at + slices < num_tiles)[:, None, None]
                x_high = tl.load(of_x + (at * INPUTS + HALF_RUN), mask=is_row & is_own, other=0.0)
            if HAS_ZEROS:
                low, high = raised_nibbles(packed, dtype, IS_INTERPRETED)
                if SUBTRACTS_FIRST:
                    low -= zero.to(dtype)
                    high -= zero.to(dtype)
            else:
                low, high = nibbles(packed, dtype, IS_INTERPRETED)
        else:
            low = signed_bytes(packed, dtype, IS_INTERPRETED)
        if SCALES_LAST:
            sums += multiply(low, x_low, IS_INTERPRETED)
            if BITS == 4:
                sums += multiply(high, x_high, IS_INTERPRETED)
        else:
            product = multiply(low, x_low, IS_INTERPRETED)
            if BITS == 4:
                product += multiply(high, x_high, IS_INTERPRETED)
            if SUMS_X:
                ones = ones_like(packed, dtype, IS_INTERPRETED)
                x_sums = multiply(ones, x_low, IS_INTERPRETED)
                if BITS == 4:
                    x_sums += multiply(ones, x_high, IS_INTERPRETED)
                product -= zero * x_sums
            sums += product * scale
    if SCALES_LAST:
        sums *= tl.load(scales + groups).to(tl.float32)[:, None]
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

"""The kernels of an `Fp8Weight`: one rounds inputs to FP8, one multiplies.

Both operands of a product are FP8 unless activations are exact; then the weight's values become
numbers of 16 bits. Sums over 128 inputs are added up in float32, since tensor cores keep fewer bits
of theirs.
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


@triton.jit(do_not_specialize=["row_stride", "block_stride"])
def round_rows_kernel(
    x,
    rounded,
    scales,
    num_in,
    row_stride,
    block_stride,
    largest,
    least_scale,
    IS_STATIC: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Each program rounds BLOCKS blocks of BLOCK inputs of one row of `x` [rows, in]; a block may
    be a whole row. Writes the scale of each block, unless scales are static; the strides are those
    of scales."""
    begin_dependent(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    inputs = blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = inputs < num_in
    numbers = tl.load(x + row * num_in + inputs, mask=inside, other=0.0).to(tl.float32)
    of_scales = scales + row * row_stride + blocks * block_stride
    is_block = blocks * BLOCK < num_in
    if IS_STATIC:
        scale = tl.load(of_scales, mask=is_block, other=1.0)
    else:
        most = tl.max(tl.abs(numbers), 1)[:, None]
        scale = tl.maximum(tl.div_rn(most, largest), least_scale)
        tl.store(of_scales, scale, mask=is_block)
    scaled = tl.div_rn(numbers, tl.zeros_like(numbers) + scale)
    scaled = tl.minimum(tl.maximum(scaled, -largest), largest)
    tl.store(rounded + row * num_in + inputs, scaled.to(rounded.dtype.element_ty), mask=inside)


@triton.jit
def scale_sums_kernel(
    sums,
    row_scales,
    scales,
    bias,
    output,
    num_out,
    row_stride,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Multiplies `sums` [rows, out] by the scales of their rows and their outputs, and adds the
    bias."""
    begin_dependent(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    outputs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = outputs < num_out
    scaled = tl.load(sums + row * num_out + outputs, mask=inside, other=0.0)
    scaled *= tl.load(row_scales + row * row_stride)
    scaled *= tl.load(scales + outputs, mask=inside, other=0.0)
    if HAS_BIAS:
        scaled += tl.load(bias + outputs, mask=inside, other=0.0).to(tl.float32)
    at = output + row * num_out + outputs
    tl.store(at, scaled.to(output.dtype.element_ty), mask=inside)


@triton.jit
def of_rows(numbers, row_begins, is_row, first_tile, num_tiles, SLICES: tl.constexpr):
    """Returns the numbers that SLICES tiles, from `first_tile` on, have for each row of `x`:
    [slices, 1, rows], or [1, rows] of one slice."""
    if SLICES == 1:
        mask = is_row & (first_tile < num_tiles)
        found = tl.load(numbers + row_begins + first_tile, mask=mask, other=0.0)[None, :]
    else:
        tiles = (first_tile + tl.arange(0, SLICES))[:, None, None]
        mask = is_row[None, None, :] & (tiles < num_tiles)
        found = tl.load(numbers + row_begins[None, None, :] + tiles, mask=mask, other=0.0)
    return found


@triton.jit(do_not_specialize=["num_rows", "num_groups"])
def fp8_kernel(
    x,
    x_scales,
    values,
    scales,
    bias,
    output,
    partial,
    ends,
    num_rows,
    num_out,
    num_in,
    x_scales_stride,
    scales_stride,
    num_groups,
    HAS_X_SCALES: tl.constexpr,
    HAS_X_BLOCKS: tl.constexpr,
    HAS_BLOCKS: tl.constexpr,
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
    in SLICES tiles of INPUTS inputs at a time. A block that has a scale is a tile."""
    begin_dependent(IS_DEPENDENT)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    safe = tl.minimum(outputs, num_out - 1).to(tl.int64)
    split = tl.program_id(2)
    num_tiles = tl.cdiv(num_in, INPUTS)
    steps = tl.cdiv(num_tiles, SLICES)
    share = tl.cdiv(steps, SPLITS)
    begin, stop = split * share, tl.minimum(steps, (split + 1) * share)
    if IS_DEPENDENT and not IS_GROUPED:
        prefetch_rows(values + safe * num_in + begin * (SLICES * INPUTS), PREFETCHED_BYTES)
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
    places = tl.arange(0, INPUTS)
    rows = first + tl.arange(0, ROWS)
    is_row = (rows < end)[None, None, :]
    of_values = (
        values
        + (weight_rows * num_in)[None, :, None]
        + slices[:, None, None] * INPUTS
        + places[None, None, :]
    )
    of_x = (
        x
        + (rows.to(tl.int64) * num_in)[None, None, :]
        + slices[:, None, None] * INPUTS
        + places[None, :, None]
    )
    blocks = weight_rows * scales_stride
    x_blocks = rows.to(tl.int64) * x_scales_stride
    sums = tl.zeros([SLICES, OUTPUTS, ROWS], tl.float32)
    if SLICES == 1:  # a product of matrices, whose outputs lie with different warps
        sums = tl.reshape(sums, [OUTPUTS, ROWS])
    # Scales are read one step ahead: unlike tiles, they are not fetched by the loop's pipeline.
    tile = begin * SLICES
    if HAS_BLOCKS:
        next_scale = of_groups(scales, blocks, tile, num_tiles, 1, SLICES)
    if HAS_X_BLOCKS:
        next_x_scale = of_rows(x_scales, x_blocks, rows < end, tile, num_tiles, SLICES)
    for step in tl.range(begin, stop, num_stages=STAGES):
        at = step * SLICES
        tile = at + SLICES
        if HAS_BLOCKS:
            scale = next_scale
            next_scale = of_groups(scales, blocks, tile, num_tiles, 1, SLICES)
        if HAS_X_BLOCKS:
            x_scale = next_x_scale
            next_x_scale = of_rows(x_scales, x_blocks, rows < end, tile, num_tiles, SLICES)
        if IS_EVEN:
            number = tl.load(of_values + at * INPUTS)
            x_tile = tl.load(of_x + at * INPUTS, mask=is_row, other=0.0)
        else:
            left = num_in - (at + slices)[:, None, None] * INPUTS
            number = tl.load(of_values + at * INPUTS, mask=places[None, None, :] < left, other=0.0)
            is_own = is_row & (places[None, :, None] < left)
            x_tile = tl.load(of_x + at * INPUTS, mask=is_own, other=0.0)
        if SLICES == 1:
            number = tl.reshape(number, [OUTPUTS, INPUTS])
            x_tile = tl.reshape(x_tile, [INPUTS, ROWS])
        product = multiply(number.to(x.dtype.element_ty), x_tile, IS_INTERPRETED)
        if HAS_BLOCKS:
            product *= scale
        if HAS_X_BLOCKS:
            product *= x_scale
        sums += product
    if SLICES > 1:
        sums = tl.sum(sums, 0)
    if not HAS_BLOCKS:
        sums *= tl.load(scales + weight_rows * scales_stride)[:, None]
    if HAS_X_SCALES and not HAS_X_BLOCKS:
        at_row = x_scales + rows * x_scales_stride
        sums *= tl.load(at_row, mask=rows < end, other=0.0)[None, :]
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

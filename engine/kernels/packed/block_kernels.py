"""The kernels of a `BlockWeight`: one unpacks the blocks of GGUF, one multiplies them.

A block is cut into runs of inputs that share a scale, and perhaps a minimum: 32 of them, 16 in
Q6_K. The layouts are those of llama.cpp's ggml-common.h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.packed.tiles import (
    begin_dependent,
    multiply,
    rows_of_tile,
    store_sums,
    wait_for_inputs,
)


@triton.jit
def _byte(blocks, at, mask):
    """Returns bytes as int32; 0 where not `mask`."""
    return tl.load(blocks + at, mask=mask, other=0).to(tl.int32)


@triton.jit
def _half(halves, at, mask):
    """Returns the float16 numbers that begin at bytes `at`, which are even."""
    return tl.load(halves + at // 2, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _scales_of_runs(blocks, halves, block, run, mask, KIND: tl.constexpr):
    """Returns the scale and the minimum of runs of the blocks that begin at bytes `block`."""
    if KIND == "Q6_K":
        packed = _byte(blocks, block + 192 + run, mask)
        scale = _half(halves, block + 208, mask) * tl.where(packed > 127, packed - 256, packed)
        least = tl.zeros_like(scale)
    elif KIND == "Q4_K" or KIND == "Q5_K":
        early = run < 4
        one = _byte(blocks, block + 4 + tl.where(early, run, run - 4), mask)
        other = _byte(blocks, block + 8 + tl.where(early, run, run - 4), mask)
        mixed = _byte(blocks, block + 8 + run, mask & (run >= 4))
        of_scale = tl.where(early, one & 63, (mixed & 15) | ((one >> 6) << 4))
        of_least = tl.where(early, other & 63, (mixed >> 4) | ((other >> 6) << 4))
        scale = _half(halves, block, mask) * of_scale.to(tl.float32)
        least = -(_half(halves, block + 2, mask) * of_least.to(tl.float32))
    else:
        scale = _half(halves, block, mask)
        least = tl.zeros_like(scale)
        if KIND == "Q4_1" or KIND == "Q5_1":
            least = _half(halves, block + 2, mask)
    return scale, least


@triton.jit
def _values_of_runs(blocks, block, run, place, mask, KIND: tl.constexpr):
    """Returns the integers of the blocks that begin at bytes `block`, by run and place in it."""
    if KIND == "Q8_0":
        value = _byte(blocks, block + 2 + place, mask)
        value = tl.where(value > 127, value - 256, value)
    elif KIND == "Q6_K":
        half, inside = run // 8, run % 8 * 16 + place
        low = _byte(blocks, block + half * 64 + inside % 64, mask) >> (inside // 64 * 4)
        high = _byte(blocks, block + 128 + half * 32 + inside % 32, mask) >> (inside // 32 * 2)
        value = ((low & 15) | ((high & 3) << 4)) - 32
    elif KIND == "Q4_K" or KIND == "Q5_K":
        OF_K: tl.constexpr = 16 if KIND == "Q4_K" else 48
        packed = _byte(blocks, block + OF_K + run // 2 * 32 + place, mask)
        value = (packed >> (run % 2 * 4)) & 15
        if KIND == "Q5_K":
            value |= ((_byte(blocks, block + 16 + place, mask) >> run) & 1) << 4
    else:
        BEGIN: tl.constexpr = 2 + 2 * (KIND == "Q4_1" or KIND == "Q5_1")
        HAS_FIFTH: tl.constexpr = KIND == "Q5_0" or KIND == "Q5_1"
        packed = _byte(blocks, block + BEGIN + 4 * HAS_FIFTH + place % 16, mask)
        value = (packed >> (place // 16 * 4)) & 15
        if HAS_FIFTH:
            value |= ((_byte(blocks, block + BEGIN + place // 8, mask) >> (place % 8)) & 1) << 4
        if KIND == "Q4_0":
            value -= 8
        if KIND == "Q5_0":
            value -= 16
    return value.to(tl.float32)


@triton.jit
def numbers_of_blocks(
    blocks,
    halves,
    row_begins,
    first_run,
    num_runs,
    KIND: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
    RUNS_OF_BLOCK: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    """Returns float32 [rows, RUNS, RUN], the numbers of RUNS runs of the rows that begin at bytes
    `row_begins`; 0 behind the last run."""
    runs = first_run + tl.arange(0, RUNS)[None, :, None]
    places = tl.arange(0, RUN)[None, None, :]
    block = row_begins[:, None, None] + runs // RUNS_OF_BLOCK * BLOCK_BYTES
    run = runs % RUNS_OF_BLOCK
    mask = runs < num_runs
    scale, least = _scales_of_runs(blocks, halves, block, run, mask, KIND)
    values = _values_of_runs(blocks, block, run, places, mask, KIND)
    return values * scale + least


@triton.jit
def unpack_blocks_kernel(
    blocks,
    halves,
    output,
    num_runs,
    row_bytes,
    KIND: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
    RUNS_OF_BLOCK: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Each program unpacks RUNS runs of one row of `blocks` [rows, bytes] into `output` [rows,
    in]."""
    begin_dependent(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    first_run = tl.program_id(1) * RUNS
    begins = tl.zeros([1], tl.int64) + row * row_bytes
    numbers = numbers_of_blocks(
        blocks, halves, begins, first_run, num_runs, KIND, RUNS, RUN, RUNS_OF_BLOCK, BLOCK_BYTES
    )
    runs = first_run + tl.arange(0, RUNS)[None, :, None]
    at = row * num_runs * RUN + runs * RUN + tl.arange(0, RUN)[None, None, :]
    tl.store(output + at, numbers.to(output.dtype.element_ty), mask=runs < num_runs)


@triton.jit(do_not_specialize=["num_rows", "num_groups"])
def block_kernel(
    x,
    blocks,
    halves,
    bias,
    output,
    partial,
    ends,
    num_rows,
    num_out,
    num_runs,
    row_bytes,
    num_groups,
    KIND: tl.constexpr,
    RUN: tl.constexpr,
    RUNS_OF_BLOCK: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_GROUPED: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RUNS: tl.constexpr,
    SPLITS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """Each program multiplies ROWS rows and OUTPUTS outputs over one of SPLITS parts of the inputs,
    RUNS runs at a time."""
    begin_dependent(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    group, first, end = rows_of_tile(
        ends, tl.program_id(1), num_rows, num_groups, ROWS, IS_GROUPED, GROUPS_BLOCK
    )
    if first >= end:
        return
    INPUTS: tl.constexpr = RUNS * RUN
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    weight_rows = tl.minimum(outputs, num_out - 1).to(tl.int64)
    if IS_GROUPED:
        weight_rows += group.to(tl.int64) * num_out
    split = tl.program_id(2)
    steps = tl.cdiv(num_runs, RUNS)
    share = tl.cdiv(steps, SPLITS)
    rows = first + tl.arange(0, ROWS)
    inputs = tl.arange(0, INPUTS)
    num_in = num_runs * RUN
    of_x = x + (rows.to(tl.int64) * num_in)[None, :] + inputs[:, None]
    sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for step in tl.range(split * share, tl.minimum(steps, (split + 1) * share)):
        inside = (rows < end)[None, :] & (step * INPUTS + inputs < num_in)[:, None]
        x_tile = tl.load(of_x + step * INPUTS, mask=inside, other=0.0)
        numbers = numbers_of_blocks(
            blocks,
            halves,
            weight_rows * row_bytes,
            step * RUNS,
            num_runs,
            KIND,
            RUNS,
            RUN,
            RUNS_OF_BLOCK,
            BLOCK_BYTES,
        )
        numbers = tl.reshape(numbers.to(x.dtype.element_ty), [OUTPUTS, INPUTS])
        sums += multiply(numbers, x_tile, IS_INTERPRETED)
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

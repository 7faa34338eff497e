"""The kernels that unpack an `IntegerWeight` or an `Fp8Weight` into numbers of 16 bits, for the
products of the vendor's library: with many rows, those are faster than any of ours."""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.packed.tiles import begin_dependent, wait_for_inputs
from engine.kernels.packed.unpacking import HALF_RUN, nibbles


@triton.jit
def unpack_integers_kernel(
    values,
    scales,
    zeros,
    output,
    num_in,
    group_size,
    BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
):
    """Each program unpacks BLOCK inputs of one row of `values` into `output` [rows, in]."""
    begin_dependent(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BLOCK
    of_scales = row * (num_in // group_size)
    if BITS == 8:
        inputs = begin + tl.arange(0, BLOCK)
        inside = inputs < num_in
        numbers = tl.load(values + row * num_in + inputs, mask=inside, other=0).to(tl.float32)
        at_group = of_scales + inputs // group_size
        if HAS_ZEROS:
            numbers -= tl.load(zeros + at_group, mask=inside, other=0).to(tl.float32)
        numbers *= tl.load(scales + at_group, mask=inside, other=0.0).to(tl.float32)
        at = output + row * num_in + inputs
        tl.store(at, numbers.to(output.dtype.element_ty), mask=inside)
    else:
        RUN: tl.constexpr = 2 * HALF_RUN
        dtype: tl.constexpr = output.dtype.element_ty
        runs = begin // RUN + tl.arange(0, BLOCK // RUN)[:, None]
        places = tl.arange(0, HALF_RUN)[None, :]
        inside = (runs * RUN < num_in) & (places < HALF_RUN)
        at = row * (num_in // 2) + runs * HALF_RUN + places
        packed = tl.load(values + at, mask=inside, other=0)
        at_group = of_scales + runs * RUN // group_size
        zero = tl.zeros([BLOCK // RUN, 1], tl.float32)
        if HAS_ZEROS:
            stored = tl.load(zeros + at_group, mask=runs * RUN < num_in, other=0)
            zero = stored.to(tl.float32) - 8.0
        scale = tl.load(scales + at_group, mask=runs * RUN < num_in, other=0.0).to(tl.float32)
        low, high = nibbles(packed, dtype, IS_INTERPRETED)
        at = output + row * num_in + runs * RUN + places
        tl.store(at, ((low.to(tl.float32) - zero) * scale).to(dtype), mask=inside)
        tl.store(at + HALF_RUN, ((high.to(tl.float32) - zero) * scale).to(dtype), mask=inside)


@triton.jit
def unpack_fp8_kernel(
    values,
    scales,
    output,
    num_in,
    scales_stride,
    BLOCK_INPUTS: tl.constexpr,
    HAS_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Each program unpacks BLOCK inputs of one row of `values` into `output` [rows, in]."""
    begin_dependent(IS_DEPENDENT)
    wait_for_inputs(IS_DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    inputs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = inputs < num_in
    numbers = tl.load(values + row * num_in + inputs, mask=inside, other=0.0).to(tl.float32)
    of_scale = scales + row * scales_stride + inputs * 0
    if HAS_BLOCKS:
        of_scale += inputs // BLOCK_INPUTS
    numbers *= tl.load(of_scale, mask=inside, other=0.0)
    at = output + row * num_in + inputs
    tl.store(at, numbers.to(output.dtype.element_ty), mask=inside)

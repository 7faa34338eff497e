"""Products of a few rows with a weight, on CUDA, as a decode step of a few sequences needs them.

Such a product is nothing but reading the weight once. Each program reads some of its rows, all of
the reads at once, and sums in float32. It reads the first of them before it waits for the kernel
that makes `x` (see `engine/dependent_launch.py`), since weights are always there: so the memory
works while the small kernels between two products do.

No GPU has run it yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FEW_ROWS = 4
"""From more rows on, the tensor cores of the vendor's library are quicker."""
OUT_BLOCK = 4
IN_BLOCK = 2048
"""Inputs that a program reads at once, of each of its OUT_BLOCK outputs."""
VECTOR_BYTES = 16


def takes(x: Tensor, weight: Tensor) -> bool:
    """Returns whether `few_rows_linear` computes this product well."""
    return (
        x.shape[0] <= FEW_ROWS
        and x.dtype in (torch.bfloat16, torch.float16)
        and weight.is_contiguous()
        and x.stride(1) == 1
        and weight.shape[1] * weight.element_size() % VECTOR_BYTES == 0
    )


def few_rows_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, launch: Mapping[str, Any]
) -> Tensor:
    """Takes x [rows, in], weight [out, in] and bias [out]; returns [rows, out]. `launch` are
    further arguments of the launch."""
    num_rows, num_in = x.shape
    num_out = weight.shape[0]
    output = x.new_empty(num_rows, num_out)
    _few_rows_kernel[(triton.cdiv(num_out, OUT_BLOCK),)](
        x,
        weight,
        bias if bias is not None else x,
        output,
        num_rows,
        num_out,
        x.stride(0),
        NUM_IN=num_in,
        ROWS=triton.next_power_of_2(num_rows),
        OUT_BLOCK=OUT_BLOCK,
        IN_BLOCK=min(IN_BLOCK, triton.next_power_of_2(num_in)),
        HAS_BIAS=bias is not None,
        num_warps=4,
        **launch,
    )
    return output


@triton.jit(do_not_specialize=["num_rows", "num_out"])
def _few_rows_kernel(
    x,
    weight,
    bias,
    output,
    num_rows,
    num_out,
    x_stride,
    NUM_IN: tl.constexpr,
    ROWS: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    IN_BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    outs = tl.program_id(0) * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    ins = tl.arange(0, IN_BLOCK)
    at = weight + outs.to(tl.int64)[:, None] * NUM_IN + ins[None, :]
    is_out = (outs < num_out)[:, None]
    if IS_DEPENDENT:
        gdc_launch_dependents()
    weights = tl.load(at, mask=is_out & (ins < NUM_IN)[None, :], other=0.0)
    if IS_DEPENDENT:
        gdc_wait()
    rows = tl.arange(0, ROWS)
    sums = tl.zeros([ROWS, OUT_BLOCK], tl.float32)
    for begin in tl.static_range(0, NUM_IN, IN_BLOCK):
        if begin > 0:
            inside = (begin + ins < NUM_IN)[None, :]
            weights = tl.load(at + begin, mask=is_out & inside, other=0.0)
        for row in tl.static_range(ROWS):
            end = tl.where(num_rows > row, NUM_IN, 0)
            values = tl.load(x + row * x_stride + begin + ins, mask=begin + ins < end, other=0.0)
            products = weights.to(tl.float32) * values.to(tl.float32)[None, :]
            part = tl.sum(products, 1)
            sums += tl.where(rows[:, None] == row, part[None, :], 0.0)
    if HAS_BIAS:
        sums += tl.load(bias + outs, mask=outs < num_out, other=0.0).to(tl.float32)[None, :]
    place = output + rows[:, None] * num_out + outs[None, :]
    wanted_out = (rows < num_rows)[:, None] & (outs < num_out)[None, :]
    tl.store(place, sums.to(output.dtype.element_ty), mask=wanted_out)

"""Products with an `Fp8Weight` on CUDA."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from engine.kernels.dequantise import LARGEST_FP8, LEAST_SCALE
from engine.kernels.packed.fp8_kernels import fp8_kernel, round_rows_kernel
from engine.kernels.packed.launching import ProductLaunch
from engine.kernels.packed.plans import (
    MOST_ROWS,
    ProductPlan,
    plan_product,
    power_of_two,
    prefetched_bytes,
)
from engine.kernels.packed.unpack_kernels import unpack_fp8_kernel
from engine.kernels.packed_weights import INPUTS_OF_A_BLOCK, Fp8Weight

LIBRARY_UNIT = 16
"""The library takes FP8 operands whose sizes are multiples of this."""
UNPACKED_BLOCK = 2048


class RoundedInputs(NamedTuple):
    """Inputs as an `Fp8Weight` takes them."""

    numbers: Tensor
    """[rows, in]: float8_e4m3fn, or as they were if activations are exact."""
    scales: Tensor | None
    """float32: [1, 1] for all rows, [rows, 1], or [rows, ceil(in / 128)]."""


def fp8_linear(
    x: Tensor, weight: Fp8Weight, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Multiplies `x` [rows, in], rounded as the weight says."""
    inputs = round_inputs(x, weight, options)
    if len(x) <= MOST_ROWS or not _library_takes(weight, x):
        return fp8_product(inputs, weight, bias, None, x.dtype, options)
    if inputs.scales is None:
        return F.linear(x, unpack_fp8(weight, x, options), bias)
    return library_product(inputs, weight, bias)


def fp8_product(
    inputs: RoundedInputs,
    weight: Fp8Weight,
    bias: Tensor | None,
    ends: Tensor | None,
    dtype: torch.dtype,
    options: dict[str, Any],
    plan: ProductPlan | None = None,
) -> Tensor:
    """Multiplies with a kernel of ours, which takes any sizes. Rows [ends[g - 1], ends[g]) are
    multiplied by weight[g], or all by the weight if `ends` is None. Returns numbers of `dtype`."""
    x, x_scales = inputs
    num_out, num_in = weight.values.shape[-2:]
    num_tiles = -(-num_in // INPUTS_OF_A_BLOCK)
    if plan is None:
        mean_rows = len(x) if ends is None else -(-len(x) // len(ends))
        plan = plan_product(mean_rows, num_out, num_tiles)
    launch = ProductLaunch(x, num_out, bias, ends, dtype, plan, options)
    has_x_blocks = x_scales is not None and weight.activations == "block"
    fp8_kernel[launch.grid](
        x,
        weight.scales if x_scales is None else x_scales,
        weight.values,
        weight.scales,
        num_rows=launch.num_rows,
        num_out=num_out,
        num_in=num_in,
        x_scales_stride=0 if x_scales is None or len(x_scales) == 1 else x_scales.shape[1],
        scales_stride=weight.scales.shape[-1],
        num_groups=launch.num_groups or 1,
        HAS_X_SCALES=x_scales is not None,
        HAS_X_BLOCKS=has_x_blocks,
        HAS_BLOCKS=weight.scales.shape[-1] > 1,
        INPUTS=INPUTS_OF_A_BLOCK,
        SLICES=plan.slices,
        IS_EVEN=num_in % (INPUTS_OF_A_BLOCK * plan.slices) == 0,
        STAGES=plan.num_stages,
        PREFETCHED_BYTES=prefetched_bytes(plan, num_in),
        IS_INTERPRETED=triton.knobs.runtime.interpret,
        **launch.pointers,
        **launch.constants,
    )
    return launch.result()


def round_inputs(x: Tensor, weight: Fp8Weight, options: dict[str, Any]) -> RoundedInputs:
    """Rounds `x` [rows, in] to FP8 as the weight says."""
    x = x.contiguous()
    if weight.activations == "exact":
        return RoundedInputs(x, None)
    num_rows, num_in = x.shape
    has_blocks, is_static = weight.activations == "block", weight.activations == "static"
    num_blocks = triton.cdiv(num_in, INPUTS_OF_A_BLOCK) if has_blocks else 1
    rounded = x.new_empty(num_rows, num_in, dtype=torch.float8_e4m3fn)
    if is_static:
        assert weight.input_scale is not None
        scales = weight.input_scale.view(-1, 1)
    else:
        scales = x.new_empty(num_rows, num_blocks, dtype=torch.float32)
    round_rows_kernel[(num_rows, num_blocks)](
        x,
        rounded,
        scales,
        scales,
        num_in,
        num_blocks,
        0 if len(scales) == 1 else 1,
        LARGEST_FP8,
        LEAST_SCALE,
        IS_STATIC=is_static,
        BLOCK=INPUTS_OF_A_BLOCK if has_blocks else power_of_two(num_in),
        num_warps=1 if has_blocks else 8,
        **options,
    )
    return RoundedInputs(rounded, scales)


def library_product(inputs: RoundedInputs, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
    """Multiplies with the vendor's library, in bfloat16."""
    numbers, scales = inputs
    assert scales is not None
    output = torch._scaled_mm(
        numbers,
        weight.values.t(),
        scale_a=scales.expand(len(numbers), 1).contiguous(),
        scale_b=weight.scales.t(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return output if bias is None else output.add_(bias)


def unpack_fp8(weight: Fp8Weight, x: Tensor, options: dict[str, Any]) -> Tensor:
    """Returns the weight [out, in] in the dtype of `x`."""
    num_out, num_in = weight.values.shape
    output = x.new_empty(num_out, num_in)
    unpack_fp8_kernel[(num_out, triton.cdiv(num_in, UNPACKED_BLOCK))](
        weight.values,
        weight.scales,
        output,
        num_in,
        weight.scales.shape[1],
        BLOCK_INPUTS=INPUTS_OF_A_BLOCK,
        HAS_BLOCKS=weight.scales.shape[1] > 1,
        BLOCK=UNPACKED_BLOCK,
        num_warps=4,
        **options,
    )
    return output


def _library_takes(weight: Fp8Weight, x: Tensor) -> bool:
    """Returns whether the vendor's library multiplies with this weight; exact activations only
    need it unpacked."""
    if weight.activations == "exact":
        return True
    has_blocks = weight.activations == "block" or weight.scales.shape[1] > 1
    is_odd = any(size % LIBRARY_UNIT for size in weight.values.shape)
    return x.dtype == torch.bfloat16 and not has_blocks and not is_odd

"""Products with an `Fp8Weight` on CUDA."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from engine.kernels.dequantise import LARGEST_FP8, LEAST_SCALE
from engine.kernels.packed.fp8_kernels import (
    fp8_kernel,
    round_rows_kernel,
    scale_sums_kernel,
)
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
MOST_OWN_ROWS_OF_BLOCKS = 16
"""With more rows, the library multiplies blocks faster, though it wants the scales of `x` in
another order."""
MOST_SUMS_SCALED_AFTER = 3 << 19
"""With more sums, the library is fastest if it applies scales of rows and outputs itself; with
fewer, a kernel that does it afterwards costs less than what its other kernels take longer."""
BLOCKS_ROUNDED_TOGETHER = 8
UNPACKED_BLOCK = 2048
SCALED_BLOCK = 1024


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
    if weight.activations == "block":
        if len(x) <= MOST_OWN_ROWS_OF_BLOCKS or not _library_takes_blocks(weight, x):
            return fp8_product(
                round_inputs(x, weight, options), weight, bias, None, x.dtype, options
            )
        return library_product_of_blocks(x, weight, bias, options)
    inputs = round_inputs(x, weight, options)
    if inputs.scales is None:
        if len(x) <= MOST_ROWS:
            return fp8_product(inputs, weight, bias, None, x.dtype, options)
        return F.linear(x, unpack_fp8(weight, x, options), bias)
    if not _library_takes(weight):
        return fp8_product(inputs, weight, bias, None, x.dtype, options)
    num_sums = len(x) * len(weight.values)
    if num_sums <= MOST_SUMS_SCALED_AFTER or x.dtype != torch.bfloat16:
        return library_product_scaled_after(inputs, weight, bias, x.dtype, options)
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
        plan = plan_product("fp8", mean_rows, num_out, num_tiles)
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


def round_inputs(
    x: Tensor, weight: Fp8Weight, options: dict[str, Any], for_library: bool = False
) -> RoundedInputs:
    """Rounds `x` [rows, in] to FP8 as the weight says. For the library's products of blocks, there
    are rows more, which hold anything, and the scales of a block lie together."""
    x = x.contiguous()
    if weight.activations == "exact":
        return RoundedInputs(x, None)
    num_rows, num_in = x.shape
    has_blocks, is_static = weight.activations == "block", weight.activations == "static"
    num_blocks = triton.cdiv(num_in, INPUTS_OF_A_BLOCK) if has_blocks else 1
    all_rows = triton.cdiv(num_rows, LIBRARY_UNIT) * LIBRARY_UNIT if for_library else num_rows
    rounded = x.new_empty(all_rows, num_in, dtype=torch.float8_e4m3fn)
    if is_static:
        assert weight.input_scale is not None
        scales = weight.input_scale.view(-1, 1)
    elif for_library:
        scales = x.new_empty(num_blocks, all_rows, dtype=torch.float32).t()
    else:
        scales = x.new_empty(num_rows, num_blocks, dtype=torch.float32)
    blocks = BLOCKS_ROUNDED_TOGETHER if has_blocks else 1
    round_rows_kernel[(num_rows, triton.cdiv(num_blocks, blocks))](
        x,
        rounded,
        scales,
        num_in,
        0 if len(scales) == 1 else scales.stride(0),
        scales.stride(1),
        LARGEST_FP8,
        LEAST_SCALE,
        IS_STATIC=is_static,
        BLOCK=INPUTS_OF_A_BLOCK if has_blocks else power_of_two(num_in),
        BLOCKS=blocks,
        num_warps=4 if has_blocks else 8,
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


def library_product_scaled_after(
    inputs: RoundedInputs,
    weight: Fp8Weight,
    bias: Tensor | None,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> Tensor:
    """Multiplies the values with the vendor's library, whose kernels for few rows know no scales of
    rows and outputs, and the sums by the scales with one of ours."""
    numbers, scales = inputs
    assert scales is not None
    one = _one(numbers.device)
    sums = torch._scaled_mm(
        numbers,
        weight.values.t(),
        scale_a=one,
        scale_b=one,
        out_dtype=torch.float32,
        use_fast_accum=True,
    )
    output = torch.empty_like(sums, dtype=dtype)
    num_rows, num_out = sums.shape
    scale_sums_kernel[(num_rows, triton.cdiv(num_out, SCALED_BLOCK))](
        sums,
        scales,
        weight.scales,
        output if bias is None else bias,
        output,
        num_out,
        0 if len(scales) == 1 else 1,
        HAS_BIAS=bias is not None,
        BLOCK=SCALED_BLOCK,
        num_warps=4,
        **options,
    )
    return output


def library_product_of_blocks(
    x: Tensor, weight: Fp8Weight, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Multiplies `x` [rows, in], rounded in blocks, with the vendor's library, in bfloat16."""
    numbers, scales = round_inputs(x, weight, options, for_library=True)
    assert scales is not None
    blocks = F.ScalingType.BlockWise1x128
    output: Tensor = F.scaled_mm(
        numbers,
        weight.values.t(),
        scales,
        blocks,
        weight.scales.t().contiguous().t(),
        blocks,
        output_dtype=torch.bfloat16,
    )[: len(x)]
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


@cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


def _library_takes(weight: Fp8Weight) -> bool:
    """Returns whether the vendor's library multiplies with this weight as it is."""
    is_odd = any(size % LIBRARY_UNIT for size in weight.values.shape)
    return weight.scales.shape[1] == 1 and not is_odd


def _library_takes_blocks(weight: Fp8Weight, x: Tensor) -> bool:
    """Returns whether the vendor's library multiplies with a weight that has a scale, too, for each
    block of inputs."""
    num_out, num_in = weight.values.shape
    is_odd = num_in % INPUTS_OF_A_BLOCK or num_out % INPUTS_OF_A_BLOCK
    return x.dtype == torch.bfloat16 and weight.scales.shape[1] > 1 and not is_odd

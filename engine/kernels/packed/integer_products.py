"""Products with an `IntegerWeight` on CUDA."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
import triton
from torch import Tensor

from engine.kernels.packed.integer_kernel import integer_kernel
from engine.kernels.packed.launching import ProductLaunch
from engine.kernels.packed.plans import (
    MOST_ROWS,
    PlanKind,
    ProductPlan,
    plan_product,
    prefetched_bytes,
)
from engine.kernels.packed.unpack_kernels import unpack_integers_kernel
from engine.kernels.packed_weights import IntegerWeight

MOST_INPUTS_OF_A_TILE = 128
UNPACKED_BLOCK = 2048


def integer_linear(
    x: Tensor, weight: IntegerWeight, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Multiplies `x` [rows, in], in the order of the weight's inputs."""
    if len(x) > MOST_ROWS:
        return F.linear(x, unpack_integers(weight, x, options), bias)
    return integer_product(x, weight, bias, None, options)


def integer_product(
    x: Tensor,
    weight: IntegerWeight,
    bias: Tensor | None,
    ends: Tensor | None,
    options: dict[str, Any],
    plan: ProductPlan | None = None,
) -> Tensor:
    """Multiplies without unpacking the weight. Rows [ends[g - 1], ends[g]) are multiplied by
    weight[g], or all by the weight if `ends` is None."""
    x = x.contiguous()
    num_out, num_in = weight.values.shape[-2], x.shape[1]
    num_groups = weight.scales.shape[-1]
    inputs = math.gcd(num_in // num_groups, MOST_INPUTS_OF_A_TILE)
    num_tiles = num_in // inputs
    if plan is None:
        mean_rows = len(x) if ends is None else -(-len(x) // len(ends))
        kind: PlanKind = "int4" if weight.num_bits == 4 else "int8"
        plan = plan_product(kind, mean_rows, num_out, num_tiles)
    launch = ProductLaunch(x, num_out, bias, ends, x.dtype, plan, options)
    row_bytes = weight.values.shape[-1]
    integer_kernel[launch.grid](
        x,
        weight.values,
        weight.scales,
        weight.values if weight.zeros is None else weight.zeros,
        num_rows=launch.num_rows,
        num_out=num_out,
        num_tiles=num_tiles,
        row_bytes=row_bytes,
        scales_stride=num_groups,
        num_groups=launch.num_groups or 1,
        GROUP_TILES=num_in // num_groups // inputs,
        HAS_GROUPS=num_groups > 1,
        BITS=weight.num_bits,
        HAS_ZEROS=weight.zeros is not None,
        INPUTS=inputs,
        SLICES=plan.slices,
        IS_EVEN=num_tiles % plan.slices == 0,
        STAGES=plan.num_stages,
        PREFETCHED_BYTES=prefetched_bytes(plan, row_bytes),
        IS_INTERPRETED=triton.knobs.runtime.interpret,
        **launch.pointers,
        **launch.constants,
    )
    return launch.result()


def unpack_integers(weight: IntegerWeight, x: Tensor, options: dict[str, Any]) -> Tensor:
    """Returns the weight [out, in] in the dtype of `x`, with inputs in the order that it has them
    in."""
    num_out, num_in = weight.values.shape[0], x.shape[1]
    output = x.new_empty(num_out, num_in)
    unpack_integers_kernel[(num_out, triton.cdiv(num_in, UNPACKED_BLOCK))](
        weight.values,
        weight.scales,
        weight.values if weight.zeros is None else weight.zeros,
        output,
        num_in,
        num_in // weight.scales.shape[-1],
        BITS=weight.num_bits,
        HAS_ZEROS=weight.zeros is not None,
        BLOCK=UNPACKED_BLOCK,
        IS_INTERPRETED=triton.knobs.runtime.interpret,
        num_warps=4,
        **options,
    )
    return output

"""Products with a `BlockWeight`, which holds the blocks of GGUF, on CUDA."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from engine.kernels.packed.block_kernels import block_kernel, unpack_blocks_kernel
from engine.kernels.packed.launching import ProductLaunch
from engine.kernels.packed.plans import (
    LEAST_ROWS,
    MOST_SPLITS,
    MULTIPROCESSORS,
    ProductPlan,
    power_of_two,
)
from engine.kernels.packed_weights import BlockKind, BlockWeight

MOST_ROWS_OF_BLOCKS = 32
"""With more rows, blocks are unpacked once for all of them."""
MOST_ROWS_OF_A_PROGRAM = 64
INPUTS_OF_A_STEP = 128


class BlockLayout(NamedTuple):
    """How a kind of block is cut into runs of inputs that share a scale."""

    num_bytes: int
    num_runs: int
    run: int


LAYOUTS: dict[BlockKind, BlockLayout] = {
    "Q4_0": BlockLayout(18, 1, 32),
    "Q4_1": BlockLayout(20, 1, 32),
    "Q5_0": BlockLayout(22, 1, 32),
    "Q5_1": BlockLayout(24, 1, 32),
    "Q8_0": BlockLayout(34, 1, 32),
    "Q4_K": BlockLayout(144, 8, 32),
    "Q5_K": BlockLayout(176, 8, 32),
    "Q6_K": BlockLayout(210, 16, 16),
}


def block_linear(
    x: Tensor, weight: BlockWeight, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """Multiplies `x` [rows, in]."""
    if len(x) > MOST_ROWS_OF_BLOCKS:
        return F.linear(x, unpack_blocks(weight, x, options), bias)
    return block_product(x, weight, bias, None, options)


def block_product(
    x: Tensor,
    weight: BlockWeight,
    bias: Tensor | None,
    ends: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Multiplies without unpacking the weight in memory. Rows [ends[g - 1], ends[g]) are multiplied
    by weight[g], or all by the weight if `ends` is None."""
    x = x.contiguous()
    layout = LAYOUTS[weight.kind]
    num_out, num_in = weight.blocks.shape[-2], x.shape[1]
    mean_rows = len(x) if ends is None else -(-len(x) // len(ends))
    plan = _plan(mean_rows, num_out, num_in)
    launch = ProductLaunch(x, num_out, bias, ends, x.dtype, plan, options)
    block_kernel[launch.grid](
        x,
        weight.blocks,
        weight.blocks.view(torch.float16),
        num_rows=launch.num_rows,
        num_out=num_out,
        num_runs=num_in // layout.run,
        row_bytes=weight.blocks.shape[-1],
        num_groups=launch.num_groups or 1,
        RUNS=INPUTS_OF_A_STEP // layout.run,
        IS_INTERPRETED=triton.knobs.runtime.interpret,
        **_constants(weight.kind),
        **launch.pointers,
        **launch.constants,
    )
    return launch.result()


def unpack_blocks(weight: BlockWeight, x: Tensor, options: dict[str, Any]) -> Tensor:
    """Returns the weight [out, in] in the dtype of `x`."""
    layout = LAYOUTS[weight.kind]
    num_out, num_runs = weight.blocks.shape[0], x.shape[1] // layout.run
    output = x.new_empty(num_out, x.shape[1])
    runs = 1024 // layout.run
    unpack_blocks_kernel[(num_out, triton.cdiv(num_runs, runs))](
        weight.blocks,
        weight.blocks.view(torch.float16),
        output,
        num_runs,
        weight.blocks.shape[1],
        RUNS=runs,
        num_warps=4,
        **_constants(weight.kind),
        **options,
    )
    return output


def _plan(num_rows: int, num_out: int, num_in: int) -> ProductPlan:
    rows = min(MOST_ROWS_OF_A_PROGRAM, max(LEAST_ROWS, power_of_two(num_rows)))
    programs = -(-num_out // 64) * -(-num_rows // rows)
    steps = -(-num_in // INPUTS_OF_A_STEP)
    splits = max(1, min(MOST_SPLITS, 8 * MULTIPROCESSORS // programs, steps // 4))
    return ProductPlan(rows, 64, 1, splits, 4, 3)


def _constants(kind: BlockKind) -> dict[str, Any]:
    layout = LAYOUTS[kind]
    return {
        "KIND": kind,
        "RUN": layout.run,
        "RUNS_OF_BLOCK": layout.num_runs,
        "BLOCK_BYTES": layout.num_bytes,
    }

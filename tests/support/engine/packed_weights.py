"""Random packed weights of every layout, small enough to be exact where a test needs it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.packed_weights import (
    Activations,
    BlockKind,
    BlockWeight,
    Fp8Weight,
    IntegerWeight,
)
from protocol.model.gguf.tensor_types import BLOCK_TYPES

CPU = torch.device("cpu")


def integer_weight(
    *shape: int,
    bits: int = 4,
    group_size: int = 32,
    has_zeros: bool = False,
    has_order: bool = False,
    scale_dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> IntegerWeight:
    """Returns integers of `shape` [(experts,) out, in]. Its numbers are about 1 in size."""
    *outer, num_in = shape
    groups = (*outer, num_in // group_size)
    if bits == 4:
        values = torch.randint(0, 256, (*outer, num_in // 2), dtype=torch.uint8, device=device)
        zeros = torch.randint(0, 16, groups, dtype=torch.uint8, device=device)
        unit = 8
    else:
        values = torch.randint(-128, 128, shape, dtype=torch.int8, device=device)
        zeros = torch.randint(-20, 20, groups, dtype=torch.int8, device=device)
        unit = 128
    scales = ((torch.rand(groups, device=device) + 0.5) / unit).to(scale_dtype)
    order = None
    if has_order:
        orders = [torch.randperm(num_in, device=device) for _ in range(shape[0])]
        order = torch.stack(orders) if len(shape) == 3 else orders[0]
    return IntegerWeight(values, scales, zeros if has_zeros else None, order)


def fp8_weight(
    *shape: int,
    activations: Activations,
    has_blocks: bool = False,
    device: torch.device = CPU,
) -> Fp8Weight:
    """Returns FP8 numbers of `shape` [(experts,) out, in], about 1 in size."""
    *outer, num_in = shape
    values = torch.randn(shape, device=device).mul_(16).to(torch.float8_e4m3fn)
    num_blocks = -(-num_in // 128) if has_blocks else 1
    scales = (torch.rand(*outer, num_blocks, device=device) + 0.5) / 16
    input_scale = None
    if activations == "static":
        experts = shape[:-2]
        input_scale = torch.full((*experts, 1), 1 / 256, device=device)
    return Fp8Weight(values, scales, activations, input_scale)


def numbers_of_fp8(rows: int, num_in: int) -> Tensor:
    """Returns inputs that rounding to FP8 leaves as they are, however they are scaled: Triton's
    interpreter rounds wrongly where a mantissa overflows."""
    x = torch.randn(rows, num_in).clamp_(-1.75, 1.75).to(torch.float8_e4m3fn).float()
    x[:, ::64] = 1.75  # 448 times a power of two
    return x


def block_weight(kind: BlockKind, *shape: int, device: torch.device = CPU) -> BlockWeight:
    """Returns random blocks of `shape` [(experts,) out, in] whose scales are small numbers."""
    form = BLOCK_TYPES[kind]
    *outer, num_in = shape
    num_blocks = num_in // form.values
    blocks = torch.randint(0, 256, (*outer, num_blocks, form.num_bytes), dtype=torch.uint8)
    for at in _scales_of(kind):
        scale = torch.rand(*outer, num_blocks, 1).div_(64).half().view(torch.uint8)
        blocks[..., at : at + 2] = scale.view(*outer, num_blocks, 2)
    return BlockWeight(blocks.flatten(-2).contiguous().to(device), kind)


def _scales_of(kind: BlockKind) -> Sequence[int]:
    """Returns the bytes at which the float16 numbers of a block begin."""
    if kind == "Q6_K":
        return (208,)
    return (0, 2) if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)


def group_ends(sizes: Sequence[int], device: torch.device = CPU) -> Tensor:
    """Returns the `ends` of groups of so many rows."""
    return torch.tensor(sizes, device=device).cumsum(0).to(torch.int32)

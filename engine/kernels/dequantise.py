"""Turns packed weights into numbers, and inputs into what the weights are multiplied by.

This is the reference for every kernel that multiplies packed weights without unpacking them first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.gguf_blocks import dequantise_blocks
from engine.kernels.packed_weights import (
    INPUTS_OF_A_BLOCK,
    INPUTS_OF_A_RUN,
    BlockWeight,
    Fp8Weight,
    IntegerWeight,
    PackedWeight,
)

LARGEST_FP8 = 448.0
"""The largest number that float8_e4m3fn holds."""
LEAST_SCALE = 1e-12
"""Stands in for the scale of inputs that are all zero."""


def dequantise(weight: PackedWeight) -> Tensor:
    """Returns the weight as float32 [out, in], or [experts, out, in]. Inputs come in the order in
    which the weight has them, which `IntegerWeight.order` tells."""
    if isinstance(weight, IntegerWeight):
        return _integers(weight)
    if isinstance(weight, Fp8Weight):
        return _fp8(weight)
    return dequantise_blocks(weight)


def inputs_of(x: Tensor, weight: PackedWeight) -> Tensor:
    """Returns `x` [tokens, in] as `weight` takes it: in its order, and rounded as it says."""
    if isinstance(weight, BlockWeight):
        return x
    if isinstance(weight, IntegerWeight):
        return x if weight.order is None else x[:, weight.order]
    return round_to_fp8(x, weight)


def inputs_of_groups(x: Tensor, weight: PackedWeight, ends: Tensor) -> Tensor:
    """Returns rows `x` as the experts of `weight` take them. Rows [ends[g - 1], ends[g]) belong to
    expert g."""
    order = weight.order if isinstance(weight, IntegerWeight) else None
    scale = weight.input_scale if isinstance(weight, Fp8Weight) else None
    if order is None and scale is None:
        return inputs_of(x, weight)
    experts = torch.searchsorted(ends, torch.arange(len(x), device=x.device), right=True)
    if order is not None:
        return x.gather(1, order[experts])
    assert isinstance(weight, Fp8Weight) and scale is not None
    return round_to_fp8(x, weight._replace(input_scale=scale[experts]))


def unpacked_nibbles(values: Tensor) -> Tensor:
    """Turns the values of a four-bit `IntegerWeight`, uint8 [..., in / 2], into [..., in]."""
    half = INPUTS_OF_A_RUN // 2
    runs = values.unflatten(-1, (-1, half))
    return torch.cat((runs & 15, runs >> 4), dim=-1).flatten(-2)


def packed_nibbles(values: Tensor) -> Tensor:
    """Turns values from 0 to 15, uint8 [..., in], into those of an `IntegerWeight`, [..., in /
    2]."""
    half = INPUTS_OF_A_RUN // 2
    runs = values.unflatten(-1, (-1, 2, half))
    return (runs[..., 0, :] | runs[..., 1, :] << 4).flatten(-2)


def round_to_fp8(x: Tensor, weight: Fp8Weight) -> Tensor:
    """Rounds `x` [tokens, in] to what FP8 can hold, as `weight.activations` says, and returns it in
    its dtype."""
    if weight.activations == "exact":
        return x
    values = x.float()
    if weight.activations == "static":
        assert weight.input_scale is not None
        return _rounded(values, weight.input_scale).to(x.dtype)
    if weight.activations == "token":
        return _rounded(values, _scales_of(values)).to(x.dtype)
    num_in = x.shape[1]
    padding = -num_in % INPUTS_OF_A_BLOCK
    blocks = torch.nn.functional.pad(values, (0, padding)).unflatten(1, (-1, INPUTS_OF_A_BLOCK))
    return _rounded(blocks, _scales_of(blocks)).flatten(1)[:, :num_in].to(x.dtype)


def scales_of_largest(largest: Tensor) -> Tensor:
    """Returns the scales of inputs that are rounded together, in float32, from the largest of
    each."""
    return (largest.float() / LARGEST_FP8).clamp_(min=LEAST_SCALE)


def _scales_of(values: Tensor) -> Tensor:
    return scales_of_largest(values.abs().amax(dim=-1, keepdim=True))


def _rounded(values: Tensor, scale: Tensor) -> Tensor:
    scaled = (values / scale).clamp_(-LARGEST_FP8, LARGEST_FP8)
    return scaled.to(torch.float8_e4m3fn).float().mul_(scale)


def _integers(weight: IntegerWeight) -> Tensor:
    is_four = weight.num_bits == 4
    values = unpacked_nibbles(weight.values) if is_four else weight.values
    groups = values.unflatten(-1, (weight.scales.shape[-1], -1)).float()
    if weight.zeros is not None:
        groups.sub_(weight.zeros[..., None])
    elif is_four:
        groups.sub_(8.0)
    return groups.mul_(weight.scales[..., None].float()).flatten(-2)


def _fp8(weight: Fp8Weight) -> Tensor:
    values = weight.values.float()
    if weight.scales.shape[-1] == 1:
        return values.mul_(weight.scales)
    scales = weight.scales.repeat_interleave(INPUTS_OF_A_BLOCK, dim=-1)
    return values.mul_(scales[..., : values.shape[-1]])

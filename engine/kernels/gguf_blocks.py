"""Dequantises the blocks of GGUF with plain torch, on any device: what the other kernels are
measured against.

The layouts are those of llama.cpp's ggml-common.h. In all of them a scale is float16, and the
values of a block come in the order of its inputs once its parts are unpacked: the first half of
a run of bytes in their low bits, the second half in their high bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from engine.kernels.packed_weights import BlockKind, BlockWeight
from protocol.model.gguf.tensor_types import BLOCK_TYPES

RUNS_OF_K = 8
"""The runs of 32 values in a block of 256 that have a scale and a minimum each."""


def dequantise_blocks(weight: BlockWeight) -> Tensor:
    """Returns the values of `weight`, float32 [..., out, in], to the bit as llama.cpp computes
    them. It takes several times the memory of the result meanwhile."""
    form = BLOCK_TYPES[weight.kind]
    blocks = weight.blocks.unflatten(-1, (-1, form.num_bytes))  # [..., out, blocks, bytes]
    return VALUES[weight.kind](blocks).flatten(-2)


def _q4_0(blocks: Tensor) -> Tensor:
    scale, packed = blocks.split((2, 16), dim=-1)
    return _numbers(scale) * (_nibbles(packed).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    scale, least, packed = blocks.split((2, 2, 16), dim=-1)
    return _numbers(scale) * _nibbles(packed).float() + _numbers(least)


def _q5_0(blocks: Tensor) -> Tensor:
    scale, high, packed = blocks.split((2, 4, 16), dim=-1)
    values = _nibbles(packed) | (_bits(high) << 4)
    return _numbers(scale) * (values.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    scale, least, high, packed = blocks.split((2, 2, 4, 16), dim=-1)
    values = _nibbles(packed) | (_bits(high) << 4)
    return _numbers(scale) * values.float() + _numbers(least)


def _q8_0(blocks: Tensor) -> Tensor:
    scale, values = blocks.split((2, 32), dim=-1)
    return _numbers(scale) * values.view(torch.int8).float()


def _q4_k(blocks: Tensor) -> Tensor:
    scale, scale_of_least, packed_scales, packed = blocks.split((2, 2, 12, 128), dim=-1)
    scales, least = _scales_of_k(packed_scales)
    values = _nibbles(packed.unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(-3, -2)
    return _of_runs(_numbers(scale) * scales, values, _numbers(scale_of_least) * least)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, scale_of_least, packed_scales, high, packed = blocks.split((2, 2, 12, 32, 128), dim=-1)
    scales, least = _scales_of_k(packed_scales)
    values = _nibbles(packed.unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(-3, -2)
    # Bit r of byte i is the fifth one of value i in run r.
    runs = torch.arange(RUNS_OF_K, dtype=torch.uint8, device=blocks.device)
    values = values | (((high[..., None, :] >> runs[:, None]) & 1) << 4)
    return _of_runs(_numbers(scale) * scales, values, _numbers(scale_of_least) * least)


def _q6_k(blocks: Tensor) -> Tensor:
    low, high, packed_scales, scale = blocks.split((128, 64, 16, 2), dim=-1)
    low = _nibbles(low.unflatten(-1, (2, 64))).flatten(-2)  # [..., 256]
    # Two bits of each value: a byte has those of values i, i + 32, i + 64 and i + 96 of its half.
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = ((high.unflatten(-1, (2, 1, 32)) >> shifts[:, None]) & 3).flatten(-3)
    values = (low | (high << 4)).float() - 32
    scales = _numbers(scale) * packed_scales.view(torch.int8).float()  # [..., 16]
    return (scales[..., None] * values.unflatten(-1, (16, 16))).flatten(-2)


def _of_runs(scales: Tensor, values: Tensor, least: Tensor) -> Tensor:
    """Returns the values of blocks of 256: scale * value - least, for each run of 32 values."""
    return (scales[..., None] * values.float() - least[..., None]).flatten(-2)


def _scales_of_k(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpacks 12 bytes into the scales and the minima of eight runs, six bits each.

    The first four scales are the low six bits of bytes 0 to 3, the first four minima those of bytes
    4 to 7. The low four bits of the others are in bytes 8 to 11, scales in the low half; their high
    two bits are what is left of bytes 0 to 7.
    """
    of_scales, of_least, mixed = packed.split(4, dim=-1)
    scales = torch.cat((of_scales & 63, (mixed & 15) | ((of_scales >> 2) & 48)), dim=-1)
    least = torch.cat((of_least & 63, (mixed >> 4) | ((of_least >> 2) & 48)), dim=-1)
    return scales.float(), least.float()


def _numbers(scale: Tensor) -> Tensor:
    """Returns the float16 in two bytes, [..., 2], as float32 [..., 1]."""
    return scale.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """Returns the low halves of all bytes in the last dimension, then their high halves."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _bits(packed: Tensor) -> Tensor:
    """Returns the bits of all bytes in the last dimension, lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)


VALUES: Mapping[BlockKind, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""By kind: takes [..., bytes of a block], returns float32 [..., values of a block]."""

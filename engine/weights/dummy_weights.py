"""Makes random weights of a configured shape, for benchmarks without a checkpoint.

The value of an element depends on the name of its tensor and on its place alone, so nodes agree on
it whatever their device and however many ranks they have.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from engine.kernels.dequantise import LARGEST_FP8
from engine.weights.pieces import Piece, Table

MASK = (1 << 32) - 1
CHUNK_ELEMENTS = 1 << 22
"""Elements that are computed at once, in eight bytes each."""


STEPS = {torch.uint8: 8.0, torch.int8: 128.0, torch.float8_e4m3fn: LARGEST_FP8}
"""By the dtype of packed values: how many scales their largest number is."""
INPUT_SCALE = 0.02
"""Scales inputs of order 1 to FP8, with room for those that are ten times as large."""


def fill(name: str, table: Table) -> None:
    """Fills the pieces of the tensor called `name`. Norms become 1; all else is uniform, with a
    variance that keeps activations of order 1."""
    owner, _, kind = name.rpartition(".")
    values = table.get(f"{owner}.values")
    for piece in table[name]:
        if values is not None and kind == "scales":
            piece.target.fill_(_scale(values[0]))
        elif values is not None and kind == "zeros":
            piece.target.fill_(8 if piece.target.dtype == torch.uint8 else 0)
        elif kind == "input_scale":
            piece.target.fill_(INPUT_SCALE)
        elif len(piece.shape) == 1 and kind != "bias":
            piece.target.fill_(1.0)
        else:
            _fill_uniform(name, piece)


def _scale(values: Piece) -> float:
    """Returns the scale that gives packed values the variance of plain ones."""
    dtype = values.target.dtype
    num_in = values.shape[-1] * (2 if dtype == torch.uint8 else 1)
    return math.sqrt(3 / num_in) / STEPS[dtype]


def _fill_uniform(name: str, piece: Piece) -> None:
    part = piece.part + (slice(None),) * (len(piece.shape) - len(piece.part))
    ranges = [range(size)[one] for size, one in zip(piece.shape, part, strict=True)]
    seed = zlib.crc32(name.encode())
    device, target = piece.target.device, piece.target
    row_elements = max(1, target[0].numel())
    step = max(1, CHUNK_ELEMENTS // row_elements)
    for begin in range(0, target.shape[0], step):
        index = torch.zeros((), dtype=torch.int64, device=device)  # in the whole tensor
        rows = ranges[0][begin : begin + step]
        for size, one in zip(piece.shape, [rows, *ranges[1:]], strict=True):
            places = torch.arange(one.start, one.stop, device=device)
            index = index[..., None] * size + places
        target[begin : begin + step] = _values(_uniform(index, seed), piece)


def _values(uniform: Tensor, piece: Piece) -> Tensor:
    """Turns numbers in [-1, 1) into values for a piece: packed ones have the range of their
    dtype."""
    dtype = piece.target.dtype
    if dtype == torch.uint8:
        return uniform.add_(1.0).mul_(128.0)
    if dtype in STEPS:
        return uniform.mul_(STEPS[dtype]).to(dtype)
    return uniform.mul_(math.sqrt(3 / piece.shape[-1]))


def _uniform(index: Tensor, seed: int) -> Tensor:
    """Returns float32 in [-1, 1) for the places `index`. It computes with integers up to the last
    step, so that all devices agree.

    The mixing is lowbias32 (Wellons, "Prospecting for hash functions", 2018).
    """
    x = (index * 0x9E3779B1 + seed).bitwise_and_(MASK)
    x.bitwise_xor_(x >> 16).mul_(0x7FEB352D).bitwise_and_(MASK)
    x.bitwise_xor_(x >> 15).mul_(0x846CA68B).bitwise_and_(MASK)
    x.bitwise_xor_(x >> 16)
    return (x >> 8).float().mul_(2.0**-23).sub_(1.0)

"""Makes random weights of a configured shape, for benchmarks without a checkpoint.

The value of an element depends on the name of its tensor and on its place alone, so nodes agree on
it whatever their device and however many ranks they have.
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from engine.weights.pieces import Piece

MASK = (1 << 32) - 1
CHUNK_ELEMENTS = 1 << 22
"""Elements that are computed at once, in eight bytes each."""


def fill(name: str, piece: Piece) -> None:
    """Fills a piece of the tensor called `name`. Norms become 1; all else is uniform, with a
    variance that keeps activations of order 1."""
    if len(piece.shape) == 1 and not name.endswith("bias"):
        piece.target.fill_(1.0)
        return
    limit = math.sqrt(3 / piece.shape[-1])
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
        target[begin : begin + step] = _uniform(index, seed).mul_(limit)


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

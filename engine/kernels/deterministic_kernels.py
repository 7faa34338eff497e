"""`DeterministicKernels` give a row the same bits however many rows are beside it, whichever they
are.

    products     have one of a few numbers of rows, padded with zeros. A library sums a row in an
                 order that depends on the shape, so a number other than the largest is used only
                 where it was seen to give the same bits as the largest
    activations  are made of functions that torch computes alike wherever a number stands; its silu
                 and gelu give other bits to the numbers left over from full vectors
    norms        see one row each, so they are left as they are

The bits do depend on the number of threads and ranks: more than two ranks are summed in an order
that depends on their number.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cache.kv_cache import KVCache
from engine.kernels.activation import Activation
from engine.kernels.base import HeadNorms, HeadShape, Kernels, Rotation, by_groups
from engine.kernels.dequantise import dequantise, inputs_of
from engine.kernels.packed_weights import PackedWeight
from engine.kernels.row_blocks import blocks

CPU_SIZES = (4, 8, 16, 32, 64, 128)
"""Numbers of rows that a product may have on a CPU, ascending."""
ALIGNED = 8
"""The inputs of a product are padded to a multiple of this. Where rows do not begin on a vector's
bounds, MKL sums some of them in another order. No real model has such sizes."""
GPU_SIZES = (128,)
"""Fewer rows would take as long, because reading the weight takes most of the time."""


class DeterministicKernels:
    """Wraps `inner`, to which it leaves norms and heads."""

    def __init__(self, inner: Kernels) -> None:
        self._inner = inner
        self._sizes: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
        """The numbers of rows that agree, by all else that the bits of a product may depend on."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        odd = -weight.shape[1] % ALIGNED
        if odd:
            x, weight = F.pad(x, (0, odd)), F.pad(weight, (0, odd))
        key = weight.shape, weight.dtype, weight.device
        if key not in self._sizes:
            self._sizes[key] = agreeing_sizes(weight)
        num_rows = len(x)
        bounds = blocks(num_rows, self._sizes[key])
        if bounds[-1] > num_rows:
            x = torch.cat((x, x.new_zeros(bounds[-1] - num_rows, x.shape[1])))
        output = x.new_empty(len(x), len(weight))
        for begin, end in pairwise(bounds):
            torch.mm(x[begin:end], weight.t(), out=output[begin:end])
        output = output[:num_rows]
        return output if bias is None else output.add_(bias)

    def grouped_linear(self, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        output = x.new_empty(x.shape[0], weight.shape[1])
        begin = 0
        for group, end in enumerate(ends.tolist()):
            if end > begin:
                output[begin:end] = self.linear(x[begin:end], weight[group], None)
            begin = end
        return output

    def packed_linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        return self.linear(inputs_of(x, weight), dequantise(weight).to(x.dtype), bias)

    def grouped_packed_linear(self, x: Tensor, weight: PackedWeight, ends: Tensor) -> Tensor:
        return by_groups(self, x, weight, ends)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._inner.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return self._inner.add_rms_norm(x, residual, weight, eps)

    def activate_and_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        x = gate.float()
        if activation == "silu":
            activated = x / x.neg().exp_().add_(1.0)
        else:
            inner = (x * x).mul_(x).mul_(0.044715).add_(x).mul_(math.sqrt(2 / math.pi))
            activated = inner.tanh_().add_(1.0).mul_(x).mul_(0.5)
        return activated.to(up.dtype).mul_(up)

    def heads(
        self,
        qkv: Tensor,
        shape: HeadShape,
        norms: HeadNorms | None,
        rope: Rotation,
        layer: int,
        cache: KVCache,
        write_slots: Tensor,
    ) -> Tensor:
        return self._inner.heads(qkv, shape, norms, rope, layer, cache, write_slots)


def agreeing_sizes(weight: Tensor) -> list[int]:
    """Returns ascending numbers of rows whose products with `weight` [out, in] give a row the same
    bits.

    The order in which a kernel adds does not depend on the values. So if all results of one product
    of random rows agree, those of every product of this shape do.
    """
    sizes = CPU_SIZES if weight.device.type == "cpu" else GPU_SIZES
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(sizes[-1], weight.shape[1], generator=chance).to(weight)
    expected = torch.mm(x, weight.t())
    agreeing = [n for n in sizes[:-1] if torch.equal(torch.mm(x[-n:], weight.t()), expected[-n:])]
    return [*agreeing, sizes[-1]]

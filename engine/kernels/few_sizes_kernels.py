"""`FewSizesKernels`: half precision on a CPU, where a library compiles a kernel for every shape.

oneDNN makes machine code for each number of rows that it meets, and it and torch keep the last
1,024 kernels each. Prompts are of all lengths, so a node would compile in many of its steps, which
takes several times as long as the product does, and its memory would grow by about a megabyte with
each new length. Here all products have one of a few numbers of rows, padded with zeros.

Products of few rows, and all products on a CPU that has no instructions for them, are computed by
`NativeKernels`, which read the weight at the speed of memory.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from engine.kernels.base import TorchKernels
from engine.kernels.native_kernels import NativeKernels
from engine.kernels.row_blocks import blocks

SIZES = (1, 2, 4, 8, 16, 24, 32, *range(48, 128, 16), *range(128, 513, 32))
"""Rows of a product. Padding is less than a third of a product of more than 32 rows; fewer take as
long as reading the weight does, whatever their number."""


MOST_NATIVE_ROWS = 8
"""From about ten rows on, instructions for half precision outdo those for float32."""


class FewSizesKernels(TorchKernels):
    """Computes as `TorchKernels` does, but products in blocks of a few numbers of rows, or in
    float32 by `native`."""

    def __init__(self, native: NativeKernels | None = None, has_instructions: bool = True) -> None:
        """`native` is None without a C compiler. `has_instructions`: the CPU multiplies numbers of
        this precision without turning them into float32 first."""
        self._native, self._has_instructions = native, has_instructions

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        num_rows = len(x)
        is_native = num_rows <= MOST_NATIVE_ROWS or not self._has_instructions
        if self._native is not None and is_native:
            added = None if bias is None else bias.float()
            return self._native.linear(x.float(), weight, added).to(x.dtype)
        bounds = blocks(num_rows, SIZES)
        if bounds[-1] > num_rows:
            x = F.pad(x, (0, 0, 0, bounds[-1] - num_rows))
        if len(bounds) == 2:
            return F.linear(x, weight, bias)[:num_rows]
        output = x.new_empty(len(x), len(weight))
        for begin, end in pairwise(bounds):
            output[begin:end] = F.linear(x[begin:end], weight, bias)
        return output[:num_rows]

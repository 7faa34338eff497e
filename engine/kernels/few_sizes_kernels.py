"""`FewSizesKernels`: half precision on a CPU, where a library compiles a kernel for every shape.

oneDNN makes machine code for each number of rows that it meets, and it and torch keep the last
1,024 kernels each. Prompts are of all lengths, so a node would compile in many of its steps, which
takes several times as long as the product does, and its memory would grow by about a megabyte with
each new length. Here all products have one of a few numbers of rows, padded with zeros.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from engine.kernels.base import TorchKernels
from engine.kernels.row_blocks import blocks

SIZES = (1, 2, 4, 8, 16, 24, 32, *range(48, 128, 16), *range(128, 513, 32))
"""Rows of a product. Padding is less than a third of a product of more than 32 rows; fewer take as
long as reading the weight does, whatever their number."""


class FewSizesKernels(TorchKernels):
    """Computes as `TorchKernels` does, but products in blocks of a few numbers of rows."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        num_rows = len(x)
        bounds = blocks(num_rows, SIZES)
        if bounds[-1] > num_rows:
            x = F.pad(x, (0, 0, 0, bounds[-1] - num_rows))
        if len(bounds) == 2:
            return F.linear(x, weight, bias)[:num_rows]
        output = x.new_empty(len(x), len(weight))
        for begin, end in pairwise(bounds):
            output[begin:end] = F.linear(x[begin:end], weight, bias)
        return output[:num_rows]

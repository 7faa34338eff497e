"""`PackedProducts`: the products with packed weights of every layout, on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.kernels.dequantise import inputs_of
from engine.kernels.packed.block_products import block_linear, block_product
from engine.kernels.packed.fp8_products import fp8_linear, fp8_product, round_inputs
from engine.kernels.packed.integer_products import integer_linear, integer_product
from engine.kernels.packed.launching import launch_options
from engine.kernels.packed_weights import BlockWeight, Fp8Weight, IntegerWeight, PackedWeight

DTYPES = (torch.bfloat16, torch.float16)


class PackedProducts:
    """Multiplies rows of 16 bits. Few rows are multiplied by the packed weight itself; for many it
    is unpacked, a layer at a time, unless the vendor's library multiplies it as it is."""

    def __init__(self, is_dependent: bool) -> None:
        """`is_dependent`: kernels are launched as `engine/dependent_launch.py` says."""
        self._options: dict[str, Any] = launch_options(is_dependent)

    def takes(self, x: Tensor) -> bool:
        """Returns whether rows like `x` are multiplied here."""
        return x.dtype in DTYPES and x.numel() > 0

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        """Does what `Kernels.packed_linear` does."""
        if isinstance(weight, IntegerWeight):
            return integer_linear(inputs_of(x, weight), weight, bias, self._options)
        if isinstance(weight, Fp8Weight):
            return fp8_linear(x, weight, bias, self._options)
        return block_linear(x, weight, bias, self._options)

    def grouped(self, x: Tensor, weight: PackedWeight, ends: Tensor) -> Tensor:
        """Does what `Kernels.grouped_packed_linear` does. No weight is unpacked in memory."""
        if isinstance(weight, BlockWeight):
            return block_product(x, weight, None, ends, self._options)
        if isinstance(weight, IntegerWeight):
            if weight.order is not None:
                x = x.gather(1, weight.order[_groups_of_rows(x, ends)])
            return integer_product(x, weight, None, ends, self._options)
        if weight.input_scale is not None:
            scales = weight.input_scale.flatten()[_groups_of_rows(x, ends)]
            weight = weight._replace(input_scale=scales)
        inputs = round_inputs(x, weight, self._options)
        return fp8_product(inputs, weight, None, ends, x.dtype, self._options)


def _groups_of_rows(x: Tensor, ends: Tensor) -> Tensor:
    """Returns the group of each row, [rows]."""
    rows = torch.arange(len(x), device=x.device)
    return torch.searchsorted(ends, rows, right=True)

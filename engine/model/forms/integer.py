"""`IntegerForm`: four or eight bits per weight, and a scale for each group of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from engine.kernels.packed_weights import INPUTS_OF_A_RUN, IntegerWeight
from engine.model.forms.packed import PackedForm
from engine.model.linear_form import Axis, TensorForm


@dataclass(frozen=True)
class IntegerForm(PackedForm):
    """The form of an `IntegerWeight`."""

    num_bits: Literal[4, 8]
    group_size: int | None
    """The inputs that share a scale, a multiple of 32; None: all of an output do."""
    has_zeros: bool = False
    scale_dtype: torch.dtype = torch.float32
    order: str = ""
    """Names the order of inputs, equal for weights that have them in the same order; empty: they
    come as the layer before makes them."""

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        """The fields of an `IntegerWeight` that weights of this form have."""
        run = INPUTS_OF_A_RUN
        values = Axis(1, run, num_elements=run // 2) if self.num_bits == 4 else Axis(1)
        dtype = torch.uint8 if self.num_bits == 4 else torch.int8
        groups = Axis(1, self.group_size)
        return (
            TensorForm("values", Axis(0), values, dtype),
            TensorForm("scales", Axis(0), groups, self.scale_dtype),
            *([TensorForm("zeros", Axis(0), groups, dtype)] if self.has_zeros else []),
            *([TensorForm("order", None, Axis(0), torch.int64)] if self.order else []),
        )

    def weight(self, tensors: Sequence[Tensor]) -> IntegerWeight:
        """Makes an `IntegerWeight` of its tensors."""
        values, scales, *others = tensors
        zeros = others[0] if self.has_zeros else None
        return IntegerWeight(values, scales, zeros, others[-1] if self.order else None)

    def of_part(self, num_in: int) -> IntegerForm | None:
        """Returns this form with groups so short that `num_in` inputs are whole groups: their
        scales are repeated. None if that cannot be, or if a part needs inputs that others have."""
        if self.order or num_in % INPUTS_OF_A_RUN:
            return None
        if self.group_size is None:
            return self
        return replace(self, group_size=math.gcd(self.group_size, num_in))

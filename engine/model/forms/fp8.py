"""`Fp8Form`: eight bits of floating point per weight, scaled by output, or by 128 inputs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.packed_weights import INPUTS_OF_A_BLOCK, Activations, Fp8Weight
from engine.model.forms.packed import PackedForm
from engine.model.linear_form import Axis, TensorForm


@dataclass(frozen=True)
class Fp8Form(PackedForm):
    """The form of an `Fp8Weight`. Scales of a tensor or of a block of outputs are written once for
    each output, so that projections with scales of their own can be computed together, and cut
    anywhere."""

    has_blocks: bool
    """True if each 128 inputs of an output have a scale; else there is one per output."""
    activations: Activations
    input_scale: str = ""
    """Names the scale of the inputs where `activations` are "static", equal for equal scales."""

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        """The fields of an `Fp8Weight` that weights of this form have."""
        blocks = Axis(1, INPUTS_OF_A_BLOCK if self.has_blocks else None)
        scale = TensorForm("input_scale", None, None, torch.float32)
        return (
            TensorForm("values", Axis(0), Axis(1), torch.float8_e4m3fn),
            TensorForm("scales", Axis(0), blocks, torch.float32),
            *([scale] if self.activations == "static" else []),
        )

    def weight(self, tensors: Sequence[Tensor]) -> Fp8Weight:
        """Makes an `Fp8Weight` of its tensors."""
        values, scales, *others = tensors
        return Fp8Weight(values, scales, self.activations, others[0] if others else None)

    def of_part(self, num_in: int) -> Fp8Form | None:
        """Returns this form, or None if a part by itself would see too few inputs to round them
        alike: those of a token are rounded together, and those of a block."""
        if self.activations == "token" or (self.has_blocks and num_in % INPUTS_OF_A_BLOCK):
            return None
        return self

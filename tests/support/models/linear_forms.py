"""Forms of linear layers for tests, each with what writes a weight in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.base import Kernels
from engine.model.linear_form import PLAIN, Axis, LinearForm, TensorForm

GROUP = 4
PER_WORD = 4


class UnpackingForm:
    """A form that unpacks the whole weight for each product."""

    tensors: tuple[TensorForm, ...]

    def unpacked(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def apply(
        self, x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, kernels: Kernels
    ) -> Tensor:
        return kernels.linear(x, self.unpacked(tensors, x.dtype), bias)

    def apply_grouped(
        self, x: Tensor, tensors: Sequence[Tensor], ends: Tensor, kernels: Kernels
    ) -> Tensor:
        experts = [self.unpacked(of_expert, x.dtype) for of_expert in zip(*tensors, strict=True)]
        return kernels.grouped_linear(x, torch.stack(experts), ends)

    def rows(self, ids: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return self.unpacked(tensors, dtype)[ids]

    def of_part(self, num_in: int) -> LinearForm | None:
        return self


class Int8Form(UnpackingForm):
    """Eight bits per weight, and a scale per output."""

    tensors = (
        TensorForm("weight_int8", outputs=Axis(0), inputs=Axis(1), dtype=torch.int8),
        TensorForm("scale", outputs=Axis(0), inputs=None),
    )

    def unpacked(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        weight, scale = tensors
        return weight.to(dtype) * scale[:, None]


class PackedForm(UnpackingForm):
    """Four weights in a word along the outputs, inputs first, and a scale per group of inputs: the
    layout that AWQ checkpoints have."""

    tensors = (
        TensorForm("qweight", outputs=Axis(1, PER_WORD), inputs=Axis(0), dtype=torch.int32),
        TensorForm("scales", outputs=Axis(1), inputs=Axis(0, GROUP), dtype=torch.float32),
    )

    def unpacked(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        words, scales = tensors
        values = words.contiguous().view(torch.int8).to(dtype)  # [in, out]
        weight = values * scales.repeat_interleave(GROUP, 0)[: len(values)]
        return weight.t().contiguous()


@dataclass(frozen=True)
class Case:
    form: LinearForm
    encode: Callable[[Tensor], dict[str, Tensor]]
    """Takes small whole numbers [out, in]; returns the form's tensors by name, exact."""


def _int8(weight: Tensor) -> dict[str, Tensor]:
    scale = 2.0 ** -(torch.arange(len(weight)) % 3).float()
    return {"weight_int8": (weight / scale[:, None]).to(torch.int8), "scale": scale}


def _packed(weight: Tensor) -> dict[str, Tensor]:
    num_out, num_in = weight.shape
    steps = torch.arange(-(-num_in // GROUP))[:, None] + torch.arange(num_out)
    scales = 2.0 ** -(steps % 3).float()
    values = weight.t() / scales.repeat_interleave(GROUP, 0)[:num_in]
    return {"qweight": values.to(torch.int8).contiguous().view(torch.int32), "scales": scales}


CASES = {
    "plain": Case(PLAIN, lambda weight: {"weight": weight}),
    "int8 per output": Case(Int8Form(), _int8),
    "packed in groups": Case(PackedForm(), _packed),
}

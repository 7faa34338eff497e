"""What all forms of packed weights share: their products are those of `Kernels`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.base import Kernels
from engine.kernels.dequantise import dequantise
from engine.kernels.packed_weights import PackedWeight
from engine.model.linear_form import TensorForm


class PackedForm(ABC):
    """A form whose tensors are the fields of a `PackedWeight`. Subclasses are frozen values."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[TensorForm, ...]:
        """The fields that a weight of this form has."""

    @abstractmethod
    def weight(self, tensors: Sequence[Tensor]) -> PackedWeight:
        """Makes the weight of its tensors, which come in the order of `self.tensors`."""

    def apply(
        self, x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, kernels: Kernels
    ) -> Tensor:
        """Returns the product of `x` and the packed weight, plus the bias."""
        return kernels.packed_linear(x, self.weight(tensors), bias)

    def apply_grouped(
        self, x: Tensor, tensors: Sequence[Tensor], ends: Tensor, kernels: Kernels
    ) -> Tensor:
        """Returns the product of each group of rows and the packed weight of its expert."""
        return kernels.grouped_packed_linear(x, self.weight(tensors), ends)

    def rows(self, ids: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns the rows `ids` of the weight, unpacked."""
        chosen = [
            tensor if form.outputs is None else tensor[ids]
            for form, tensor in zip(self.tensors, tensors, strict=True)
        ]
        return dequantise(self.weight(chosen)).to(dtype)

"""`LinearForm`: how a linear layer stores its weight, how ranks split it, and how it multiplies.

A form is data about its tensors and one function. `engine/model/linear.py` makes the parameters,
`engine/weights/pieces.py` fills them; neither knows one form from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.kernels.base import Kernels
from engine.model.families import UnsupportedModel


@dataclass(frozen=True)
class Axis:
    """A dimension of a stored tensor along which the outputs, or the inputs, of a layer lie."""

    dimension: int
    unit: int = 1
    """The number of outputs or inputs that one element stands for: 8 where an int32 holds eight of
    four bits, the size of a group where one scale serves a group."""

    def length(self, total: int) -> int:
        """Returns how many elements hold `total` outputs or inputs."""
        return -(-total // self.unit)

    def part(self, items: range, total: int) -> slice:
        """Returns where `items` of `total` outputs or inputs lie. Raises UnsupportedModel if they
        begin or end within an element."""
        is_cut = items.start % self.unit or (items.stop % self.unit and items.stop != total)
        if is_cut:
            raise UnsupportedModel(
                f"the model's weights are stored in groups of {self.unit}, which a rank's part "
                f"from {items.start} to {items.stop} would cut; choose a smaller "
                "--tensor-parallel-size"
            )
        return slice(items.start // self.unit, self.length(items.stop))


@dataclass(frozen=True)
class TensorForm:
    """One of the tensors that make up a weight [out, in]. A tensor without one of the two axes says
    the same of all outputs, or of all inputs."""

    name: str
    """Its name in a checkpoint, behind the name of the layer."""
    outputs: Axis | None
    inputs: Axis | None
    dtype: torch.dtype | None = None
    """None: the dtype that the model is computed in."""

    def shape(self, num_out: int, num_in: int) -> tuple[int, ...]:
        """Returns the shape of this tensor for a weight of `num_out` outputs and `num_in`
        inputs."""
        lengths = {}
        for axis, total in ((self.outputs, num_out), (self.inputs, num_in)):
            if axis is not None:
                lengths[axis.dimension] = axis.length(total)
        return tuple(lengths[dimension] for dimension in sorted(lengths)) or (1,)

    def part_of_outputs(self, outputs: range, num_out: int) -> tuple[slice, ...]:
        """Returns where `outputs` lie, out of `num_out`, as an index of the tensor."""
        return _part(self.outputs, outputs, num_out)

    def part_of_inputs(self, inputs: range, num_in: int) -> tuple[slice, ...]:
        """Returns where `inputs` lie, out of `num_in`, as an index of the tensor."""
        return _part(self.inputs, inputs, num_in)


class LinearForm(Protocol):
    """One way to store and to multiply a weight; frozen, and shared by all layers that have it."""

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        """The tensors that a checkpoint has, and a layer holds, for each weight."""

    def apply(
        self, x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, kernels: Kernels
    ) -> Tensor:
        """Takes x [tokens, in]; returns [tokens, out].

        `tensors` are a rank's parts, in the order of `self.tensors`. As with `Kernels`, it does not
        wait for the device, and the shape of the result depends on shapes alone.
        """


class PlainForm:
    """The weight as it was trained: one tensor [out, in] in the dtype of the model."""

    tensors = (TensorForm("weight", outputs=Axis(0), inputs=Axis(1)),)

    def apply(
        self, x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, kernels: Kernels
    ) -> Tensor:
        """Returns the product of `x` and the weight, which is the only tensor, plus the bias."""
        return kernels.linear(x, tensors[0], bias)


PLAIN = PlainForm()


def _part(axis: Axis | None, items: range, total: int) -> tuple[slice, ...]:
    if axis is None:
        return ()
    return (*(slice(None),) * axis.dimension, axis.part(items, total))

"""`LinearForm`: how a linear layer stores its weight, how ranks split it, and how it multiplies.

A form is data about its tensors, and how they are multiplied. `engine/model/linear.py` makes the
parameters, `engine/weights/pieces.py` fills them; neither knows one form from another. The forms of
packed weights are in `engine/model/forms`.

Forms are equal if layers that have them can be one layer with the outputs of both: whatever one of
their tensors says of all outputs is then the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from engine.kernels.base import Kernels
from engine.model.families import UnsupportedModel


@dataclass(frozen=True)
class Axis:
    """A dimension of a stored tensor along which the outputs, or the inputs, of a layer lie."""

    dimension: int
    unit: int | None = 1
    """The number of outputs or inputs that `num_elements` stand for: 8 where an int32 holds eight
    of four bits, the size of a group where one scale serves a group. None: all of them."""
    num_elements: int = 1

    def length(self, total: int) -> int:
        """Returns how many elements hold `total` outputs or inputs."""
        return -(-total // (self.unit or total)) * self.num_elements

    def part(self, items: range, total: int) -> slice:
        """Returns where `items` of `total` outputs or inputs lie. Raises UnsupportedModel if they
        begin or end within a unit."""
        if self.unit is None:
            return slice(0, self.num_elements)
        is_cut = items.start % self.unit or (items.stop % self.unit and items.stop != total)
        if is_cut:
            raise UnsupportedModel(
                f"the model's weights are stored in groups of {self.unit}, which a rank's part "
                f"from {items.start} to {items.stop} would cut; choose a smaller "
                "--tensor-parallel-size"
            )
        return slice(items.start // self.unit * self.num_elements, self.length(items.stop))


@dataclass(frozen=True)
class TensorForm:
    """One of the tensors that make up a weight [out, in]. A tensor without one of the two axes says
    the same of all outputs, or of all inputs."""

    name: str
    """Its name in a checkpoint, behind the name of the layer."""
    outputs: Axis | None
    inputs: Axis | None
    """None, like `outputs`: it is the same for all of them."""
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

    def cover_of_inputs(
        self, inputs: range, shorter: TensorForm
    ) -> tuple[tuple[slice, ...], tuple[int, ...]]:
        """Returns where the groups lie that `inputs` are in, and which of those, along the last
        dimension, each of the shorter groups is that `inputs` alone are cut into."""
        assert self.inputs is not None and shorter.inputs is not None
        long, short = self.inputs.unit, shorter.inputs.unit
        assert long is not None and short is not None and long % short == 0
        first = inputs.start // long
        picks = tuple(begin // long - first for begin in inputs[::short])
        part = slice(first, first + picks[-1] + 1)
        return (*(slice(None),) * self.inputs.dimension, part), picks


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

    def apply_grouped(
        self, x: Tensor, tensors: Sequence[Tensor], ends: Tensor, kernels: Kernels
    ) -> Tensor:
        """Does what `Kernels.grouped_linear` does, with the weights of experts in this form: each
        of `tensors` has one more dimension in front."""

    def rows(self, ids: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns the rows `ids` of the weight in `dtype`, [ids, in]: an embedding."""

    def of_part(self, num_in: int) -> LinearForm | None:
        """Returns the form in which a rank holds each `num_in` of the inputs, if it can compute its
        part of the product as exactly as the whole; else None. Scales of shorter groups than those
        of this form are repeated when they are loaded."""


class PlainForm:
    """The weight as it was trained: one tensor [out, in] in the dtype of the model."""

    tensors = (TensorForm("weight", outputs=Axis(0), inputs=Axis(1)),)

    def apply(
        self, x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, kernels: Kernels
    ) -> Tensor:
        """Returns the product of `x` and the weight, which is the only tensor, plus the bias."""
        return kernels.linear(x, tensors[0], bias)

    def apply_grouped(
        self, x: Tensor, tensors: Sequence[Tensor], ends: Tensor, kernels: Kernels
    ) -> Tensor:
        """Returns the product of each group of rows and the weight of its expert."""
        return kernels.grouped_linear(x, tensors[0], ends)

    def rows(self, ids: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns the rows `ids` of the weight, which is in the dtype of the model."""
        return nn.functional.embedding(ids, tensors[0])

    def of_part(self, num_in: int) -> PlainForm:
        """Returns this form: a plain weight can be cut anywhere."""
        return self


PLAIN = PlainForm()


def always_plain(module: str) -> LinearForm:
    """Returns the form of every module of a model that is not quantised."""
    return PLAIN


def _part(axis: Axis | None, items: range, total: int) -> tuple[slice, ...]:
    if axis is None:
        return ()
    return (*(slice(None),) * axis.dimension, axis.part(items, total))

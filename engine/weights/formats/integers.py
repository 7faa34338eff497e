"""`IntegerModule`: integers with groups, whatever words a format packs them in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

from engine.kernels.dequantise import packed_nibbles
from engine.kernels.packed_weights import INPUTS_OF_A_RUN
from engine.model.families import UnsupportedModel
from engine.model.forms.integer import IntegerForm
from engine.weights.formats.module import as_slice, ranges, tensors_of
from engine.weights.source import Part, TensorInfo, TensorSource
from protocol.model.directory import ModelDirectoryError

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """The sizes of a packed weight, as its tensors have them."""

    num_out: int
    num_in: int
    num_bits: Literal[4, 8]
    num_groups: int

    @property
    def group_size(self) -> int:
        """The inputs that share a scale in the checkpoint."""
        return self.num_in // self.num_groups


class IntegerModule(ABC):
    """Implements `PackedModule` with what a subclass reads of its words."""

    def __init__(
        self,
        name: str,
        source: TensorSource,
        shape: Shape,
        scales: str,
        has_zeros: bool,
        order: Tensor | None = None,
    ) -> None:
        """`scales` is the tensor that has them; `order` [in] is the input that each input of the
        sorted groups is. Raises UnsupportedModel or ModelDirectoryError."""
        self.name, self.source, self.shape, self.order = name, source, shape, order
        dtype = source.tensors[scales].dtype
        if dtype not in FLOATS:
            raise ModelDirectoryError(
                f"{scales} in {source.name} is {dtype}; scales must be one of {', '.join(FLOATS)}"
            )
        group_size = _group_size(name, shape)
        self.form = IntegerForm(
            shape.num_bits,
            group_size if shape.num_groups > 1 else None,
            has_zeros,
            FLOATS[dtype],
            _digest(order),
        )
        self._repeats = shape.group_size // group_size

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is to know of the tensors of its form."""
        return tensors_of(self.form, self.shape.num_out, self.shape.num_in)

    @property
    @abstractmethod
    def stored(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that it is made of."""

    @abstractmethod
    def values(self, outputs: range, inputs: range) -> Tensor:
        """Reads the integers of some outputs and inputs, from 0 on: uint8 [outputs, inputs]."""

    @abstractmethod
    def scales(self, outputs: range, groups: range) -> Tensor:
        """Reads the scales of some groups: [outputs, groups]."""

    @abstractmethod
    def zeros(self, outputs: range, groups: range) -> Tensor:
        """Reads the zero points of some groups: uint8 [outputs, groups]."""

    def read(self, tensor: str, part: Part = ()) -> Tensor:
        """Returns a part of one of the tensors of its form. Raises ModelDirectoryError."""
        if tensor == "order":
            assert self.order is not None
            return self.order[part]
        outputs, places = ranges(part, self.tensors[tensor].shape)
        if tensor == "values":
            return self._packed(outputs, places)
        groups = range(places.start // self._repeats, -(-places.stop // self._repeats))
        read = self.scales if tensor == "scales" else self._stored_zeros
        values = read(outputs, groups)
        if self._repeats == 1:
            return values
        first = places.start % self._repeats
        return values.repeat_interleave(self._repeats, 1)[:, first : first + len(places)]

    def _packed(self, outputs: range, places: range) -> Tensor:
        """Reads the values of some outputs as `IntegerWeight` has them, and of these `places`."""
        if self.shape.num_bits == 8:
            return _signed(self._sorted(outputs, places))
        half = INPUTS_OF_A_RUN // 2  # the bytes of a run
        first, last = places.start // half, -(-places.stop // half)
        inputs = range(first * INPUTS_OF_A_RUN, last * INPUTS_OF_A_RUN)
        begin = places.start - first * half
        return packed_nibbles(self._sorted(outputs, inputs))[:, begin : begin + len(places)]

    def _sorted(self, outputs: range, inputs: range) -> Tensor:
        if self.order is None:
            return self.values(outputs, inputs)
        return self.values(outputs, range(self.shape.num_in))[:, self.order[as_slice(inputs)]]

    def _stored_zeros(self, outputs: range, groups: range) -> Tensor:
        zeros = self.zeros(outputs, groups)
        return zeros if self.shape.num_bits == 4 else _signed(zeros)


def required(name: str, source: TensorSource) -> TensorInfo:
    """Returns what `source` knows of a tensor that must be there. Raises ModelDirectoryError."""
    info = source.tensors.get(name)
    if info is None:
        raise ModelDirectoryError(f"{source.name} lack {name}; fetch the model again")
    return info


def matrix(name: str, source: TensorSource, dtype: str | None = None) -> tuple[int, int]:
    """Returns the shape of a tensor that must be there, of two dimensions and this dtype. Raises
    ModelDirectoryError."""
    info = required(name, source)
    if len(info.shape) != 2 or 0 in info.shape or (dtype is not None and info.dtype != dtype):
        wanted = f"two dimensions of {dtype}" if dtype else "two dimensions"
        raise ModelDirectoryError(
            f"{name} in {source.name} is {info.dtype} {list(info.shape)}; it must have {wanted}; "
            "fetch the model again"
        )
    rows, columns = info.shape
    return rows, columns


def require_shape(name: str, source: TensorSource, shape: tuple[int, int], dtype: str) -> None:
    """Raises ModelDirectoryError unless a tensor has the shape that its neighbours ask for."""
    if (found := matrix(name, source, dtype)) != shape:
        raise ModelDirectoryError(
            f"{name} in {source.name} is {list(found)}, and the tensors beside it ask for "
            f"{list(shape)}; fetch the model again"
        )


def require_groups(name: str, source: TensorSource, num_in: int, num_groups: int) -> None:
    """Raises ModelDirectoryError unless the inputs make equal groups."""
    if num_in % num_groups:
        raise ModelDirectoryError(
            f"{name} in {source.name} has {num_groups} groups for {num_in} inputs, which cannot be "
            "equally long; fetch the model again"
        )


def _group_size(name: str, shape: Shape) -> int:
    """Returns the size of the groups that the form has. Raises UnsupportedModel."""
    size = math.gcd(shape.group_size, shape.num_in)
    if size % INPUTS_OF_A_RUN:
        raise UnsupportedModel(
            f"{name} has {shape.num_in} inputs in groups of {shape.group_size}; this engine reads "
            f"groups that are multiples of {INPUTS_OF_A_RUN}; choose another checkpoint of the "
            "model"
        )
    return size


def _digest(order: Tensor | None) -> str:
    return "" if order is None else blake2b(order.numpy().tobytes(), digest_size=8).hexdigest()


def _signed(values: Tensor) -> Tensor:
    """Turns 0 to 255 into -128 to 127."""
    return (values ^ 128).view(torch.int8)

"""Integers of compressed-tensors in its format "pack-quantized": words along the inputs, and zero
points in words along the outputs. All are stored from 0 on, half of their range above the values
they stand for."""

from __future__ import annotations

from torch import Tensor

from engine.model.quantisation import IntegerScheme
from engine.weights.formats.integers import (
    IntegerModule,
    Shape,
    matrix,
    require_groups,
    require_shape,
)
from engine.weights.formats.module import as_slice
from engine.weights.formats.words import per_word, unpacked_part, words_of
from engine.weights.source import TensorSource
from protocol.model.directory import ModelDirectoryError


class CompressedIntegers(IntegerModule):
    """A weight of `weight_packed` [out, in / per word], `weight_scale` [out, groups] and perhaps
    `weight_zero_point` [out / per word, groups]."""

    def __init__(self, name: str, source: TensorSource, scheme: IntegerScheme) -> None:
        """Raises ModelDirectoryError or UnsupportedModel."""
        num_out, num_words = matrix(f"{name}.weight_packed", source, "I32")
        _, num_groups = matrix(f"{name}.weight_scale", source)
        require_shape(
            f"{name}.weight_scale",
            source,
            (num_out, num_groups),
            source.tensors[f"{name}.weight_scale"].dtype,
        )
        num_in = num_words * per_word(scheme.num_bits)
        require_groups(name, source, num_in, num_groups)
        shape = Shape(num_out, num_in, scheme.num_bits, num_groups)
        if scheme.group_size not in (None, shape.group_size):
            raise ModelDirectoryError(
                f"{name} in {source.name} has groups of {shape.group_size} inputs, and config.json "
                f"says {scheme.group_size}; fetch the model again"
            )
        if scheme.has_zeros:
            words = -(-num_out // per_word(scheme.num_bits))
            require_shape(f"{name}.weight_zero_point", source, (words, num_groups), "I32")
        super().__init__(name, source, shape, f"{name}.weight_scale", scheme.has_zeros)

    @property
    def stored(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that it is made of."""
        tensors = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
        names = (f"{self.name}.{tensor}" for tensor in tensors)
        return tuple(name for name in names if name in self.source.tensors)

    def values(self, outputs: range, inputs: range) -> Tensor:
        """Reads the integers of some outputs and inputs."""
        part = as_slice(outputs), words_of(inputs, self.shape.num_bits)
        words = self.source.read(f"{self.name}.weight_packed", part)
        return unpacked_part(words, self.shape.num_bits, inputs)

    def scales(self, outputs: range, groups: range) -> Tensor:
        """Reads the scales of some groups."""
        part = as_slice(outputs), as_slice(groups)
        return self.source.read(f"{self.name}.weight_scale", part)

    def zeros(self, outputs: range, groups: range) -> Tensor:
        """Reads the zero points of some groups."""
        part = words_of(outputs, self.shape.num_bits), as_slice(groups)
        words = self.source.read(f"{self.name}.weight_zero_point", part)
        return unpacked_part(words.t(), self.shape.num_bits, outputs).t()

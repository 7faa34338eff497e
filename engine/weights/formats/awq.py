"""AWQ in its version "gemm": eight outputs of an input in a word, in an order of their own.

The layout is that of AutoAWQ (awq/modules/linear/gemm.py) and of llm-awq's first kernels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from engine.weights.formats.integers import (
    IntegerModule,
    Shape,
    matrix,
    require_groups,
    require_shape,
)
from engine.weights.formats.module import as_slice
from engine.weights.formats.words import bytes_of, per_word, words_of
from engine.weights.source import TensorSource

BITS: Literal[4] = 4
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which of the eight integers in a word belongs to output 0, 1, and so on."""


class AwqModule(IntegerModule):
    """A weight of `qweight` [in, out / 8], `qzeros` [groups, out / 8] and `scales` [groups,
    out]."""

    def __init__(self, name: str, source: TensorSource) -> None:
        """Raises ModelDirectoryError or UnsupportedModel."""
        num_in, num_words = matrix(f"{name}.qweight", source, "I32")
        num_groups, num_out = matrix(f"{name}.scales", source)
        require_shape(f"{name}.qweight", source, (num_in, num_out // per_word(BITS)), "I32")
        require_shape(f"{name}.qzeros", source, (num_groups, num_words), "I32")
        require_groups(name, source, num_in, num_groups)
        shape = Shape(num_out, num_in, BITS, num_groups)
        super().__init__(name, source, shape, f"{name}.scales", has_zeros=True)

    @property
    def stored(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that it is made of."""
        return tuple(f"{self.name}.{tensor}" for tensor in ("qweight", "qzeros", "scales"))

    def values(self, outputs: range, inputs: range) -> Tensor:
        """Reads the integers of some outputs and inputs."""
        return self._integers("qweight", outputs, inputs)

    def scales(self, outputs: range, groups: range) -> Tensor:
        """Reads the scales of some groups."""
        part = as_slice(groups), as_slice(outputs)
        return self.source.read(f"{self.name}.scales", part).t()

    def zeros(self, outputs: range, groups: range) -> Tensor:
        """Reads the zero points of some groups."""
        return self._integers("qzeros", outputs, groups)

    def _integers(self, tensor: str, outputs: range, rows: range) -> Tensor:
        part = as_slice(rows), words_of(outputs, BITS)
        words = self.source.read(f"{self.name}.{tensor}", part).t()
        # Eight outputs at a time, each with all of its rows together: [words, 4, rows].
        halves = bytes_of(words).unflatten(1, (-1, 4)).transpose(1, 2).contiguous()
        values = torch.stack((halves & 15, halves >> 4), dim=2).flatten(1, 2)[:, PLACES]
        first = outputs.start % per_word(BITS)
        return values.flatten(0, 1)[first : first + len(outputs)]

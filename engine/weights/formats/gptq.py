"""GPTQ: integers of an output in words along its inputs, zero points in words along the outputs.

The layout is that of AutoGPTQ and GPTQModel. Their first version stores zero points less one, and
takes one away from whole words, so that a zero borrows from its neighbour; so one is added to whole
words here. With `desc_act` the inputs of a group are not neighbours; `g_idx` tells their groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.model.families import UnsupportedModel
from engine.model.quantisation import IntegerScheme, Quantisation
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

ONES = {4: 0x11111111, 8: 0x01010101}
"""A one in each integer of a word."""


class GptqModule(IntegerModule):
    """A weight of `qweight` [in / per word, out], `qzeros` [groups, out / per word], `scales`
    [groups, out] and perhaps `g_idx` [in]."""

    def __init__(self, name: str, source: TensorSource, settings: Quantisation) -> None:
        """Raises ModelDirectoryError or UnsupportedModel."""
        num_groups, num_out = matrix(f"{name}.scales", source)
        num_words, _ = matrix(f"{name}.qweight", source, "I32")
        _, num_words_of_zeros = matrix(f"{name}.qzeros", source, "I32")
        num_bits = num_words_of_zeros * 32 // num_out
        if num_bits not in ONES:
            raise UnsupportedModel(
                f"{name} is quantised with GPTQ in {num_bits} bits; 4 and 8 are supported"
            )
        num_in = num_words * per_word(num_bits)
        require_shape(f"{name}.qweight", source, (num_words, num_out), "I32")
        require_shape(f"{name}.qzeros", source, (num_groups, num_out * num_bits // 32), "I32")
        require_groups(name, source, num_in, num_groups)
        shape = Shape(num_out, num_in, 4 if num_bits == 4 else 8, num_groups)
        self._added = 0 if settings.is_gptq_v2 else ONES[num_bits]
        self._settings = settings
        order = _order(f"{name}.g_idx", source, shape)
        scheme = settings.scheme_of(name)
        has_zeros = not isinstance(scheme, IntegerScheme) or scheme.has_zeros
        super().__init__(name, source, shape, f"{name}.scales", has_zeros, order)

    @property
    def stored(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that it is made of."""
        names = (f"{self.name}.{one}" for one in ("qweight", "qzeros", "scales", "g_idx"))
        return tuple(name for name in names if name in self.source.tensors)

    def values(self, outputs: range, inputs: range) -> Tensor:
        """Reads the integers of some outputs and inputs."""
        num_bits = self.shape.num_bits
        part = words_of(inputs, num_bits), as_slice(outputs)
        words = self.source.read(f"{self.name}.qweight", part)
        return unpacked_part(words.t(), num_bits, inputs)

    def scales(self, outputs: range, groups: range) -> Tensor:
        """Reads the scales of some groups. Raises ModelDirectoryError if the zero points, which a
        symmetric weight does not load, are not in the middle."""
        part = as_slice(groups), as_slice(outputs)
        if not self.form.has_zeros:
            self._require_middle(self.zeros(outputs, groups))
        return self.source.read(f"{self.name}.scales", part).t()

    def zeros(self, outputs: range, groups: range) -> Tensor:
        """Reads the zero points of some groups."""
        num_bits = self.shape.num_bits
        part = as_slice(groups), words_of(outputs, num_bits)
        words = self.source.read(f"{self.name}.qzeros", part)
        return unpacked_part(words + self._added, num_bits, outputs).t()

    def _require_middle(self, zeros: Tensor) -> None:
        middle = 1 << (self.shape.num_bits - 1)
        if zeros.eq(middle).all():
            return
        other = -1 if self._settings.is_gptq_v2 else 1
        is_other = bool(zeros.eq(middle + other).all())
        mine, others = ("gptq_v2", "gptq") if self._settings.is_gptq_v2 else ("gptq", "gptq_v2")
        remedy = f"set checkpoint_format to {others!r}" if is_other else "set sym to false"
        raise ModelDirectoryError(
            f"{self.name}.qzeros in {self.source.name} does not hold the zero points of a "
            f"symmetric model with the checkpoint_format {mine!r}; {remedy} in its config, or "
            "fetch the model again"
        )


def _order(name: str, source: TensorSource, shape: Shape) -> Tensor | None:
    """Returns which input each input of the sorted groups is; None if they are sorted. Raises
    ModelDirectoryError."""
    info = source.tensors.get(name)
    if info is None:
        return None
    wrong = ModelDirectoryError(
        f"{name} in {source.name} does not have {shape.group_size} inputs for each of "
        f"{shape.num_groups} groups; fetch the model again"
    )
    if info.shape != (shape.num_in,) or info.dtype not in ("I32", "I64"):
        raise wrong
    groups = source.read(name)
    expected = torch.arange(shape.num_in) // shape.group_size
    order = groups.argsort(stable=True)
    if not groups[order].eq(expected).all():
        raise wrong
    return None if groups.eq(expected).all() else order

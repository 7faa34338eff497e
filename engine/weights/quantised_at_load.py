"""`--quantization` of a plain checkpoint: its projections are rounded while they are loaded.

Each number goes to the nearest that the form holds. Nothing is calibrated, so answers are a little
worse than those of a checkpoint that was quantised with data. Embedding, head and norms stay as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from engine.kernels.dequantise import LARGEST_FP8, packed_nibbles
from engine.kernels.packed_weights import INPUTS_OF_A_RUN
from engine.model.families import UnsupportedModel
from engine.model.forms.fp8 import Fp8Form
from engine.model.forms.integer import IntegerForm
from engine.model.quantisation import Fp8Scheme, Scheme
from engine.weights.formats.integers import matrix
from engine.weights.formats.module import PackedModule, as_slice, ranges, tensors_of
from engine.weights.module_names import is_projection, stem_of
from engine.weights.source import Part, TensorInfo, TensorSource

LEAST_SCALE = 1e-6
"""Stands in for the scale of weights that are all zero; float16 holds it."""


class _LastRounded:
    """The module that was rounded last. The tensors of its form are read one after the other, and
    its weight should be rounded once; those of more modules would be a second copy of the model."""

    def __init__(self) -> None:
        self.key: tuple[str, range] | None = None
        self.tensors: dict[str, Tensor] = {}


class RoundedModule:
    """Implements `PackedModule` with a plain `weight` [out, in]."""

    def __init__(self, name: str, source: TensorSource, scheme: Scheme, last: _LastRounded) -> None:
        """Raises UnsupportedModel if the inputs do not make groups."""
        self.stored = (f"{name}.weight",)
        self._name, self._source, self._scheme, self._last = name, source, scheme, last
        self._size = matrix(f"{name}.weight", source)
        self.form: IntegerForm | Fp8Form
        if isinstance(scheme, Fp8Scheme):
            self.form = Fp8Form(scheme.has_blocks, scheme.activations)
            return
        group_size = scheme.group_size and group_size_of(name, self._size[1], scheme.group_size)
        self.form = IntegerForm(
            scheme.num_bits,
            group_size,
            scheme.has_zeros,
            torch.float32 if group_size is None else torch.float16,
        )

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is to know of the tensors of its form."""
        return tensors_of(self.form, *self._size)

    def read(self, tensor: str, part: Part = ()) -> Tensor:
        """Returns a part of one of the tensors of its form. It reads all inputs of the outputs,
        since a scale may be that of all of them."""
        outputs, places = ranges(part, self.tensors[tensor].shape)
        key = self._name, outputs
        if self._last.key != key:
            weight = self._source.read(f"{self._name}.weight", (as_slice(outputs),)).float()
            self._last.key, self._last.tensors = key, self._rounded(weight)
        return self._last.tensors[tensor][:, as_slice(places)]

    def _rounded(self, weight: Tensor) -> dict[str, Tensor]:
        if isinstance(self.form, Fp8Form):
            return _fp8(weight)
        if self.form.num_bits == 8:
            return _int8(weight)
        assert self.form.group_size is not None
        return _int4(weight, self.form.group_size, self.form.scale_dtype)


def quantised_modules(source: TensorSource, scheme: Scheme) -> dict[str, PackedModule]:
    """Returns the modules of all projections of a plain checkpoint. Raises UnsupportedModel."""
    if stacked := [name for name in source.tensors if name.endswith("experts.gate_up_proj")]:
        raise UnsupportedModel(
            f"{stacked[0]} holds all experts of a layer, which --quantization does not take apart; "
            "leave it out, or choose a checkpoint with a tensor for each expert"
        )
    stem, last = stem_of(source.tensors), _LastRounded()
    modules: dict[str, PackedModule] = {}
    for tensor in source.tensors:
        name, _, kind = tensor.rpartition(".")
        if kind == "weight" and is_projection(name, stem):
            modules[name] = RoundedModule(name, source, scheme, last)
    return modules


def group_size_of(name: str, num_in: int, most: int) -> int:
    """Returns the size of groups, at most `most`, that `num_in` inputs make. Raises
    UnsupportedModel."""
    size = math.gcd(num_in, most)
    if size % INPUTS_OF_A_RUN:
        raise UnsupportedModel(
            f"{name} has {num_in} inputs, which make no groups of a multiple of {INPUTS_OF_A_RUN}; "
            "choose --quantization int8 or fp8, or none"
        )
    return size


def _int4(weight: Tensor, group_size: int, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    groups = weight.unflatten(1, (-1, group_size))
    least, largest = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    scales = ((largest - least) / 15).clamp_(min=LEAST_SCALE).to(scale_dtype)
    steps = scales.float()
    zeros = (-least / steps).round_().clamp_(0, 15)
    values = (groups / steps[..., None]).round_().add_(zeros[..., None]).clamp_(0, 15)
    packed = packed_nibbles(values.flatten(1).to(torch.uint8))
    return {"values": packed, "scales": scales, "zeros": zeros.to(torch.uint8)}


def _int8(weight: Tensor) -> dict[str, Tensor]:
    scales = (weight.abs().amax(1, keepdim=True) / 127).clamp_(min=LEAST_SCALE)
    return {"values": (weight / scales).round_().to(torch.int8), "scales": scales}


def _fp8(weight: Tensor) -> dict[str, Tensor]:
    scales = (weight.abs().amax(1, keepdim=True) / LARGEST_FP8).clamp_(min=LEAST_SCALE)
    values = (weight / scales).clamp_(-LARGEST_FP8, LARGEST_FP8)
    return {"values": values.to(torch.float8_e4m3fn), "scales": scales}

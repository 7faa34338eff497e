"""FP8 weights, as compressed-tensors and the `quant_method` "fp8" store them: scaled by tensor, by
output, or by blocks of outputs and 128 inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.kernels.packed_weights import INPUTS_OF_A_BLOCK
from engine.model.forms.fp8 import Fp8Form
from engine.model.quantisation import Fp8Scheme
from engine.weights.formats.integers import matrix, required
from engine.weights.formats.module import as_slice, ranges, tensors_of
from engine.weights.source import Part, TensorInfo, TensorSource
from protocol.model.directory import ModelDirectoryError

SCALES = ("weight_scale", "weight_scale_inv")
"""The names of the scales, which values are multiplied by, whatever the second one says."""
INPUT_SCALES = ("input_scale", "activation_scale")
FLOAT_DTYPES = ("F32", "F16", "BF16", "F8_E8M0", "U8")
EXPONENTS = ("F8_E8M0", "U8")
"""Dtypes of scales that are powers of two, of which a byte holds the exponent."""
BIAS = 127
NEAR_DENSE = ("weight_zero_point", "input_zero_point")
"""Zeros that some producers write beside symmetric weights."""


class Fp8Module:
    """Implements `PackedModule` with `weight` [out, in], its scales, and perhaps one of inputs."""

    def __init__(self, name: str, source: TensorSource, scheme: Fp8Scheme) -> None:
        """Raises ModelDirectoryError."""
        self.name, self.source = name, source
        self._size = matrix(f"{name}.weight", source, "F8_E4M3")
        self._scale = _present(name, SCALES, source)
        self._input_scale = ""
        value = ""
        if scheme.activations == "static":
            self._input_scale = _present(name, INPUT_SCALES, source)
            value = repr(self._scale_of_inputs().item())
        self._require_scales(scheme)
        self.form = Fp8Form(scheme.has_blocks, scheme.activations, value)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is to know of the tensors of its form."""
        return tensors_of(self.form, *self._size)

    @property
    def stored(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that it is made of."""
        tensors = ("weight", *SCALES, *INPUT_SCALES, *NEAR_DENSE)
        names = (f"{self.name}.{tensor}" for tensor in tensors)
        return tuple(name for name in names if name in self.source.tensors)

    def read(self, tensor: str, part: Part = ()) -> Tensor:
        """Returns a part of one of the tensors of its form. Raises ModelDirectoryError."""
        if tensor == "values":
            return self.source.read(f"{self.name}.weight", part)
        if tensor == "input_scale":
            return self._scale_of_inputs()
        outputs, blocks = ranges(part, self.tensors[tensor].shape)
        scales = _numbers(self.source.read(self._scale), self.source.tensors[self._scale].dtype)
        if scales.numel() == 1:
            return scales.reshape(1, 1).expand(len(outputs), len(blocks))
        rows_of_scale = INPUTS_OF_A_BLOCK if self.form.has_blocks else 1
        scales = scales.reshape(len(scales), -1)[:, as_slice(blocks)]
        rows = torch.arange(outputs.start, outputs.stop) // rows_of_scale
        return scales[rows]

    def _scale_of_inputs(self) -> Tensor:
        """Returns float32 [1]."""
        scale = self.source.read(self._input_scale).float().reshape(-1)
        if len(scale) != 1 or not bool(torch.isfinite(scale).all() & (scale > 0).all()):
            raise ModelDirectoryError(
                f"{self._input_scale} in {self.source.name} must be one positive number; fetch the "
                "model again"
            )
        return scale

    def _require_scales(self, scheme: Fp8Scheme) -> None:
        """Raises ModelDirectoryError unless there are as many scales as the scheme says."""
        info = required(self._scale, self.source)
        num_out, num_in = self._size
        shape: Any = info.shape
        if scheme.has_blocks:
            num_blocks = -(-num_in // INPUTS_OF_A_BLOCK)
            is_right = len(shape) == 2 and shape[1] == num_blocks and _divides(shape[0], num_out)
            wanted = f"a scale for each of {num_blocks} blocks of inputs"
        else:
            is_right = shape in ((), (1,), (1, 1), (num_out,), (num_out, 1))
            wanted = f"one scale, or one for each of {num_out} outputs"
        if not is_right or info.dtype not in FLOAT_DTYPES:
            raise ModelDirectoryError(
                f"{self._scale} in {self.source.name} is {info.dtype} {list(shape)}; config.json "
                f"asks for {wanted}; config and weights are of different models"
            )


def _present(name: str, tensors: tuple[str, ...], source: TensorSource) -> str:
    for tensor in tensors:
        if f"{name}.{tensor}" in source.tensors:
            return f"{name}.{tensor}"
    raise ModelDirectoryError(f"{source.name} lack {name}.{tensors[0]}; fetch the model again")


def _divides(num_blocks: int, num_out: int) -> bool:
    """Says whether blocks of 128 outputs make up all of them."""
    return num_blocks == -(-num_out // INPUTS_OF_A_BLOCK)


def _numbers(scales: Tensor, dtype: str) -> Tensor:
    """Returns scales as float32; a byte is the exponent of a power of two."""
    if dtype not in EXPONENTS:
        return scales.float()
    return torch.exp2(scales.view(torch.uint8).float() - BIAS)

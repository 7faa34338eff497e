"""The weights that are multiplied without being unpacked first: what a layer of a quantised model
holds in memory, whichever file format it came from.

    IntegerWeight   AWQ, GPTQ, integers of compressed-tensors, weights quantised at load
    Fp8Weight       FP8 per tensor, channel or block
    BlockWeight     the blocks of GGUF, as they lie in the file

Weights of experts have one more dimension in front: [experts, out, …].
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

INPUTS_OF_A_RUN = 32
"""The number of inputs whose four-bit values are laid out together; groups are multiples of it."""
INPUTS_OF_A_BLOCK = 128
"""The number of inputs that share a scale in block-scaled FP8, and in its activations."""

Activations = Literal["exact", "static", "token", "block"]
"""How inputs are rounded to FP8 before they are multiplied by an Fp8Weight: not at all, by the
checkpoint's own scale, by the largest of each token, by the largest of each token's 128 inputs."""
BlockKind = Literal["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


class IntegerWeight(NamedTuple):
    """A weight [out, in] of integers: (value - zero) * scale, with a scale for each group of inputs
    of an output. Groups are equally long."""

    values: Tensor
    """Four bits: uint8 [out, in / 2] of values from 0 to 15; in each run of 32 inputs, byte j has
    input j in its low half and input j + 16 in its high half. Eight bits: int8 [out, in]."""
    scales: Tensor
    """[out, groups], float32, float16 or bfloat16."""
    zeros: Tensor | None = None
    """[out, groups] in the dtype of `values`; None: 8 for four bits, 0 for eight."""
    order: Tensor | None = None
    """[in] int64: the input of `x` that each input of `values` stands for; None: they are in the
    same order."""

    @property
    def num_bits(self) -> int:
        """The bits of a value: 4 or 8."""
        return 4 if self.values.dtype == torch.uint8 else 8


class Fp8Weight(NamedTuple):
    """A weight [out, in] of float8_e4m3fn: value * scale."""

    values: Tensor
    """[out, in]."""
    scales: Tensor
    """float32 [out, 1], or [out, ceil(in / 128)] with a scale for each block of inputs."""
    activations: Activations
    input_scale: Tensor | None = None
    """float32, if activations are "static": [1] for all tokens, or [tokens, 1]."""


class BlockWeight(NamedTuple):
    """A weight [out, in] in blocks of GGUF. The kind says how many inputs a block holds and how."""

    blocks: Tensor
    """uint8 [out, in / inputs of a block * bytes of a block]."""
    kind: BlockKind


PackedWeight = IntegerWeight | Fp8Weight | BlockWeight


def expert_of(weight: PackedWeight, index: int) -> PackedWeight:
    """Returns the weight of one expert, out of a weight of several."""
    fields = (field[index] if isinstance(field, Tensor) else field for field in weight)
    return type(weight)(*fields)  # type: ignore[arg-type]

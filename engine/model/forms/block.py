"""`BlockForm`: the blocks of GGUF, multiplied as they lie in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.packed_weights import BlockKind, BlockWeight
from engine.model.forms.packed import PackedForm
from engine.model.linear_form import Axis, TensorForm
from protocol.model.gguf.tensor_types import BLOCK_TYPES


@dataclass(frozen=True)
class BlockForm(PackedForm):
    """The form of a `BlockWeight`."""

    kind: BlockKind

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        """The blocks, which are all that a weight of this form has."""
        block = BLOCK_TYPES[self.kind]
        inputs = Axis(1, block.values, num_elements=block.num_bytes)
        return (TensorForm("blocks", Axis(0), inputs, torch.uint8),)

    def weight(self, tensors: Sequence[Tensor]) -> BlockWeight:
        """Makes a `BlockWeight` of its blocks."""
        return BlockWeight(tensors[0], self.kind)

    def of_part(self, num_in: int) -> BlockForm | None:
        """Returns this form, or None if `num_in` inputs are not whole blocks."""
        return None if num_in % BLOCK_TYPES[self.kind].values else self

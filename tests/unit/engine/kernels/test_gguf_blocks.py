"""Blocks of GGUF dequantise to the bit as `gguf`, the reference package, does it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from engine.kernels.gguf_blocks import VALUES, dequantise_blocks
from engine.kernels.packed_weights import BlockKind, BlockWeight
from protocol.model.gguf.tensor_types import BLOCK_TYPES, OTHER_NAMES, TENSOR_TYPES
from tests.support.gguf.random_blocks import random_blocks


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_those_of_the_reference(kind: BlockKind) -> None:
    values = 3 * BLOCK_TYPES[kind].values
    blocks = random_blocks(kind, 2, 40, values)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    found = dequantise_blocks(BlockWeight(torch.from_numpy(blocks), kind))
    assert found.shape == (2, 40, values)
    assert np.array_equal(found.numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("kind", VALUES)
def test_a_part_of_a_row_may_be_anywhere_in_memory(kind: BlockKind) -> None:
    num_bytes, values = BLOCK_TYPES[kind].num_bytes, BLOCK_TYPES[kind].values
    blocks = torch.from_numpy(random_blocks(kind, 5, 3 * values))
    whole = dequantise_blocks(BlockWeight(blocks, kind))
    part = dequantise_blocks(BlockWeight(blocks[::2, num_bytes:], kind))
    assert torch.equal(part, whole[::2, values:])


def test_numbers_and_sizes_of_types_are_those_of_the_reference() -> None:
    assert VALUES.keys() == BLOCK_TYPES.keys()
    for number, one in TENSOR_TYPES.items():
        reference = gguf.GGMLQuantizationType[one.name]
        assert (number, *one[1:]) == (reference.value, *gguf.GGML_QUANT_SIZES[reference])
    known = {one.value: one.name for one in gguf.GGMLQuantizationType}
    assert OTHER_NAMES.items() <= known.items()
    assert not OTHER_NAMES.keys() & TENSOR_TYPES.keys()

"""Blocks of GGUF dequantise to the bit as `gguf`, the reference package, does it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from engine.kernels.gguf_blocks import VALUES, dequantise_blocks
from engine.kernels.packed_weights import BlockKind, BlockWeight
from protocol.model.gguf.tensor_types import BLOCK_TYPES, OTHER_NAMES, TENSOR_TYPES

SCALES: dict[BlockKind, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where the float16 numbers of a block begin; every other byte may be anything."""


def random_blocks(kind: BlockKind, *shape: int) -> np.ndarray:
    """Returns blocks of random bytes, with finite scales, [*shape, bytes of a row of 3 blocks]."""
    chance = np.random.default_rng(list(VALUES).index(kind))
    blocks = chance.integers(0, 256, (*shape, 3, BLOCK_TYPES[kind].num_bytes), dtype=np.uint8)
    for begin in SCALES[kind]:
        scales = chance.normal(size=(*shape, 3, 1)).astype(np.float16)
        blocks[..., begin : begin + 2] = scales.view(np.uint8)
    return blocks.reshape(*shape, -1)


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_those_of_the_reference(kind: BlockKind) -> None:
    blocks = random_blocks(kind, 2, 40)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    found = dequantise_blocks(BlockWeight(torch.from_numpy(blocks), kind))
    assert found.shape == (2, 40, 3 * BLOCK_TYPES[kind].values)
    assert np.array_equal(found.numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("kind", VALUES)
def test_a_part_of_a_row_may_be_anywhere_in_memory(kind: BlockKind) -> None:
    num_bytes, values = BLOCK_TYPES[kind].num_bytes, BLOCK_TYPES[kind].values
    blocks = torch.from_numpy(random_blocks(kind, 5))
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

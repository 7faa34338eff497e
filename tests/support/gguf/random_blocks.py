"""Random blocks of every kind of GGUF."""

from __future__ import annotations

import numpy as np

from engine.kernels.gguf_blocks import VALUES
from engine.kernels.packed_weights import BlockKind
from protocol.model.gguf.tensor_types import BLOCK_TYPES

SCALES: dict[BlockKind, dict[int, float]] = {
    "Q4_0": {0: 0.04},
    "Q4_1": {0: 0.04, 2: -0.3},
    "Q5_0": {0: 0.02},
    "Q5_1": {0: 0.02, 2: -0.3},
    "Q8_0": {0: 0.0025},
    "Q4_K": {0: 0.001, 2: 0.0075},
    "Q5_K": {0: 0.0005, 2: 0.0075},
    "Q6_K": {208: 0.0001},
}
"""Where the float16 numbers of a block begin, and a size of each with which values spread about as
far as 0.2. Every other byte may be anything."""


def random_blocks(kind: BlockKind, *shape: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes and finite scales for a weight of `shape`: uint8, with the bytes of a
    row as the last dimension."""
    form = BLOCK_TYPES[kind]
    chance = np.random.default_rng([list(VALUES).index(kind), seed])
    blocks_of_row = shape[-1] // form.values
    blocks = chance.integers(0, 256, (*shape[:-1], blocks_of_row, form.num_bytes), dtype=np.uint8)
    for begin, size in SCALES[kind].items():
        scales = size * chance.uniform(0.5, 1.5, (*shape[:-1], blocks_of_row, 1))
        blocks[..., begin : begin + 2] = scales.astype(np.float16).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)

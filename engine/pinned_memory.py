"""Takes pinned memory of the host before a node serves, so that no step asks the driver for any.

What goes to a GPU without waiting goes through pinned memory. Torch keeps the blocks that it once
got from the driver, but has none for a size that is new, or when all of that size are under way.
To pin another block the driver may wait for whatever runs on the device: a message of another node
that is not here yet would hold up the steps of all answers. All transfers of this process use
the same blocks.
"""

from __future__ import annotations

import torch

SMALLEST_BYTES, LARGEST_BYTES = 8, 8 << 20
"""The tables of 256 answers of 8,000 pages have the largest."""
FEWEST, MOST = 4, 64
"""There are so many blocks of each size: two steps under way, and links, have some at the same
time, and a step has dozens of small ones."""
SIZE_BYTES = 4 << 20
"""All blocks of one size have no more than this together, unless they are the fewest."""


def pinned_blocks() -> list[int]:
    """Returns the sizes of the blocks to take, in bytes. Torch rounds what it pins up to a power of
    two, and gives it a free block of that size alone."""
    sizes = [1 << power for power in range(64) if SMALLEST_BYTES <= 1 << power <= LARGEST_BYTES]
    return [size for size in sizes for _ in range(max(FEWEST, min(MOST, SIZE_BYTES // size)))]


def reserve_pinned_memory(device: torch.device) -> None:
    """Takes the blocks, and leaves them to torch. Does nothing for a CPU."""
    if device.type == "cuda":
        # All at once: a block that is given back would be the next one.
        _ = [torch.empty(n, dtype=torch.uint8, pin_memory=True) for n in pinned_blocks()]

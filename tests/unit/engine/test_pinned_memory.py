"""The blocks of pinned memory that are taken before a node serves."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from engine.pinned_memory import (
    FEWEST,
    LARGEST_BYTES,
    MOST,
    SMALLEST_BYTES,
    pinned_blocks,
    reserve_pinned_memory,
)


def test_every_length_finds_several_blocks_of_the_size_that_torch_gives_it() -> None:
    blocks = Counter(pinned_blocks())
    for length in (1 + SMALLEST_BYTES // 2, SMALLEST_BYTES, 100, 4096, 4097, LARGEST_BYTES):
        assert blocks[1 << (length - 1).bit_length()] >= FEWEST
    assert blocks[1024] == MOST, "a step has many small ones"
    assert max(blocks) == LARGEST_BYTES and sum(pinned_blocks()) < 100 << 20


def test_nothing_is_pinned_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "empty", lambda size, **_: taken.append(size))
    reserve_pinned_memory(torch.device("cpu"))
    assert not taken
    reserve_pinned_memory(torch.device("cuda"))
    assert taken == pinned_blocks()

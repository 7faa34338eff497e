"""Pages of the pool are copied as they are, all layers of them, and no other page changes."""

from __future__ import annotations

import random

import pytest
import torch

from engine.cache.kv_cache import COPIED_AT_ONCE, KVCache
from engine.cache.make_cache import make_cache
from protocol.layout import FP8, KVLayout

LAYOUT = KVLayout(page_size=4, num_layers=3, num_kv_heads=2, head_dim=5, dtype="float32")
SCALED = KVLayout(4, 3, 2, 5, FP8, "token")
NUM_PAGES = 3 * COPIED_AT_ONCE


@pytest.mark.parametrize("layout", [LAYOUT, SCALED], ids=["float32", "fp8"])
@pytest.mark.parametrize("count", [0, 1, COPIED_AT_ONCE, COPIED_AT_ONCE + 1])
def test_pages_are_copied(count: int, layout: KVLayout) -> None:
    cache = make_cache(layout, NUM_PAGES, torch.device("cpu"))
    cache.storage.random_(generator=torch.Generator().manual_seed(1))
    pages = random.Random(2).sample(range(NUM_PAGES), 2 * count)
    sources, destinations = pages[:count], pages[count:]
    expected = cache.storage.clone()
    for source, destination in zip(sources, destinations, strict=True):
        expected[:, destination] = expected[:, source]
    cache.copy(sources, destinations)
    assert torch.equal(cache.storage, expected)


def test_one_source_may_go_to_several_pages() -> None:
    cache = KVCache(LAYOUT, 4, torch.device("cpu"))
    cache.pool[:, 2] = 7.0
    cache.copy([2, 2], [0, 3])
    assert [float(cache.pool[:, page].mean()) for page in range(4)] == [7.0, 0.0, 7.0, 7.0]

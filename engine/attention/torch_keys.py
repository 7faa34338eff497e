"""Finds where the keys of a group of sequences lie in the pool."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.batches.batch import SliceGroup
from engine.cache.kv_cache import KVCache, slots_of


def key_rows(
    part: SliceGroup,
    cache: KVCache,
    slices: np.ndarray,
    firsts: np.ndarray,
    counts: np.ndarray,
    padded: int,
) -> Tensor:
    """Returns rows that `cache.keys` takes, [n * kv_heads * padded]: for each of `slices` [n],
    `counts` keys from position `firsts` on, padded to `padded`.

    Padding repeats the last key, not just any row of the pool: another sequence's page may hold a
    NaN, and 0 * NaN is NaN, so a weight of 0 would not hide it.
    """
    device, page_size = part.page_tables.device, cache.layout.page_size
    places = np.minimum(np.arange(padded), counts[:, None] - 1)
    positions = torch.from_numpy(firsts[:, None] + places).to(device)
    owners = torch.from_numpy(slices).to(device)[:, None]
    pages = part.page_tables[owners, positions // page_size].long()
    return cache.head_rows(slots_of(pages, positions % page_size, page_size))

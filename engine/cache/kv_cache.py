"""`KVCache`: the KV pool of one node, paged.

A layer of the pool, seen as rows of one token's K or V, runs page after page:

    | K of token 0, 1, … page_size-1 | V of token 0, 1, … page_size-1 | next page …

A token's slot is the row of its K; its V lies `page_size` rows further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.rows import upload
from protocol.layout import KVLayout

COPIED_AT_ONCE = 16
"""Pages; bounds the memory that a copy takes beside the pool."""

Indices = TypeVar("Indices", "np.ndarray", Tensor)


def slots_of(pages: Indices, offsets: Indices, page_size: int) -> Indices:
    """Returns the slots of the tokens at `offsets` within `pages`. The arguments broadcast."""
    return pages * (2 * page_size) + offsets


class LayerPages(NamedTuple):
    """One layer of a pool, as attention kernels read it and the kernel of heads writes it."""

    values: Tensor
    """[pages, 2, page_size, kv_heads, head_dim]. Pages may be further apart than they are long."""
    scales: Tensor | None
    """As `KVLayout.scales` says: None; static: [2, kv_heads] float32; token: float16 [pages, 2,
    page_size, kv_heads]."""


class KVCache:
    """The KV pool of one rank. `storage` is [layers, pages, bytes]: whatever belongs to one page in
    one layer lies side by side, so that a page can be copied and sent as one run of bytes. `pool`
    are its values, [layers, pages, 2, page_size, kv_heads, head_dim]."""

    def __init__(self, layout: KVLayout, num_pages: int, device: torch.device) -> None:
        self.layout = layout
        self.num_pages = num_pages
        self.storage = torch.zeros(
            (layout.num_layers, num_pages, layout.layer_page_bytes),
            dtype=torch.uint8,
            device=device,
        )
        shape = (2, layout.page_size, layout.num_kv_heads, layout.head_dim)
        values = self.storage[:, :, : layout.layer_value_bytes]
        self.pool = values.view(getattr(torch, layout.dtype)).unflatten(2, shape)

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """Stores `key` and `value` [tokens, kv_heads, head_dim] at `slots` [tokens]."""
        rows = self.pool[layer].flatten(0, 2)  # [pages * 2 * page_size, kv_heads, head_dim]
        rows.index_copy_(0, slots, key)
        rows[self.layout.page_size :].index_copy_(0, slots, value)

    def copy(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copies each page of `sources` into the page of `destinations` in the same place. No page
        is both. On CUDA the copies are queued on the current stream."""
        assert len(sources) == len(destinations) and not set(sources) & set(destinations)
        for begin in range(0, len(sources), COPIED_AT_ONCE):
            pages = slice(begin, begin + COPIED_AT_ONCE)
            both = np.array([sources[pages], destinations[pages]], dtype=np.int64)
            old, new = upload(both, self.storage.device)
            self.storage.index_copy_(1, new, self.storage.index_select(1, old))

    def head_rows(self, slots: Tensor) -> Tensor:
        """Returns the rows that `keys` and `values` take for `slots` [n, tokens], flat: [n *
        kv_heads * tokens], token after token of one head, head after head. So what is gathered is a
        batch of matrices."""
        num_heads = self.layout.num_kv_heads
        heads = torch.arange(num_heads, device=slots.device)[:, None]
        return (slots[:, None] * num_heads + heads).flatten()

    def keys(self, layer: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns a copy of K of a layer, [rows, head_dim] in `dtype`; `rows` are of
        `head_rows`."""
        return self.pool[layer].flatten(0, 3).index_select(0, rows).to(dtype)

    def values(self, layer: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns a copy of V of a layer, as `keys` does of K."""
        heads = self.pool[layer].flatten(0, 3)
        heads = heads[self.layout.page_size * self.layout.num_kv_heads :]
        return heads.index_select(0, rows).to(dtype)

    def layer_pages(self, layer: int) -> LayerPages:
        """Returns a layer as kernels take it. Nothing is copied."""
        return LayerPages(self.pool[layer], None)


def num_pages_that_fit(layout: KVLayout, budget_bytes: int) -> int:
    """Returns how many pages of `layout` fit into `budget_bytes`."""
    return budget_bytes // layout.page_bytes

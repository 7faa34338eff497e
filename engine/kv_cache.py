"""`KVCache`: the KV pool of one node, paged."""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.layout import KVLayout


class KVCache:
    """`pool` is [layers, pages, 2, page_size, kv_heads, head_dim]: K and V of one page in one
    layer lie side by side, so that a page can be copied as one run of bytes."""

    def __init__(self, layout: KVLayout, num_pages: int, device: torch.device) -> None:
        self.layout = layout
        self.num_pages = num_pages
        self.pool = torch.zeros(
            layout.num_layers,
            num_pages,
            2,
            layout.page_size,
            layout.num_kv_heads,
            layout.head_dim,
            dtype=getattr(torch, layout.dtype),
            device=device,
        )

    def keys(self, layer: int) -> Tensor:
        """View [pages, page_size, kv_heads, head_dim]."""
        return self.pool[layer, :, 0]

    def values(self, layer: int) -> Tensor:
        return self.pool[layer, :, 1]


def num_pages_that_fit(layout: KVLayout, budget_bytes: int) -> int:
    return budget_bytes // layout.page_bytes

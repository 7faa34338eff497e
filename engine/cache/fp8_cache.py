"""`Fp8Cache`: a KV pool whose pages hold eight bits a number, and scales.

A page of one layer, with scales per token; without, they belong to the model and are beside the
pool:

    | K and V, as in any pool: 1 byte a number | float16 scales [2, page_size, kv_heads] |
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.cache.fp8 import from_fp8, scales_of, to_fp8
from engine.cache.kv_cache import KVCache, LayerPages
from protocol.layout import KVLayout

K, V = 0, 1


class Fp8Cache(KVCache):
    """Rounds what is written, and gives back what the rounded numbers mean."""

    def __init__(
        self,
        layout: KVLayout,
        num_pages: int,
        device: torch.device,
        static_scales: Tensor | None = None,
    ) -> None:
        """`static_scales` [layers, 2, kv_heads] float32 are those of this rank's heads, and None if
        the pages have scales per token."""
        super().__init__(layout, num_pages, device)
        assert (static_scales is None) == (layout.scales == "token")
        self.static_scales = None if static_scales is None else static_scales.to(device)
        self._bits = self.pool.view(torch.uint8).flatten(2, 3)
        """[layers, pages, 2 * page_size, kv_heads, head_dim]"""
        self.token_scales: Tensor | None = None
        if static_scales is None:
            scales = self.storage[:, :, layout.layer_value_bytes :].view(torch.float16)
            shape = (2, layout.page_size, layout.num_kv_heads)
            self.token_scales = scales.unflatten(2, shape)

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        page_size = self.layout.page_size
        pages, places = slots // (2 * page_size), slots % (2 * page_size)
        for which, heads in ((K, key), (V, value)):
            at = places + which * page_size
            if self.static_scales is not None:
                scales = self.static_scales[layer, which].expand(heads.shape[:2])
            else:
                assert self.token_scales is not None
                scales = scales_of(heads)
                self.token_scales[layer].flatten(1, 2)[pages, at] = scales
            self._bits[layer][pages, at] = to_fp8(heads, scales).view(torch.uint8)

    def keys(self, layer: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return self._read(layer, K, rows).to(dtype)

    def values(self, layer: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return self._read(layer, V, rows).to(dtype)

    def layer_pages(self, layer: int) -> LayerPages:
        scales = self.token_scales if self.static_scales is None else self.static_scales
        assert scales is not None
        return LayerPages(self.pool[layer], scales[layer])

    def _read(self, layer: int, which: int, rows: Tensor) -> Tensor:
        """Returns what K or V of `rows` of `head_rows` mean, [rows, head_dim] float32."""
        num_heads = self.layout.num_kv_heads
        half = self.layout.page_size * num_heads
        pages, places = rows // (2 * half), rows % (2 * half) + which * half
        bits = self._bits[layer].flatten(1, 2)[pages, places]
        if self.static_scales is not None:
            return from_fp8(bits, self.static_scales[layer, which][places % num_heads])
        assert self.token_scales is not None
        return from_fp8(bits, self.token_scales[layer].flatten(1, 3)[pages, places])

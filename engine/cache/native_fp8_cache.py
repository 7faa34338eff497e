"""`NativeFp8Cache` writes and reads FP8 pages on a CPU with `engine/kernels/native/fp8_pages.c`,
to the bit as `Fp8Cache` does, and many times as fast."""

from __future__ import annotations

from ctypes import CDLL

import torch
from torch import Tensor

from engine.cache.fp8_cache import Fp8Cache, K, V
from protocol.layout import KVLayout


class NativeFp8Cache(Fp8Cache):
    """Takes and gives float32."""

    def __init__(
        self, layout: KVLayout, num_pages: int, static_scales: Tensor | None, library: CDLL
    ) -> None:
        """`static_scales` as `Fp8Cache` takes them."""
        super().__init__(layout, num_pages, torch.device("cpu"), static_scales)
        self._library = library

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        key, value = key.float().contiguous(), value.float().contiguous()
        self._library.fp8_write(
            *self.pointers(layer),
            key.data_ptr(),
            value.data_ptr(),
            slots.data_ptr(),
            key.shape[0],
            *self._sizes,
        )

    def keys(self, layer: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return self._read_natively(layer, K, rows).to(dtype)

    def values(self, layer: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return self._read_natively(layer, V, rows).to(dtype)

    def pointers(self, layer: int) -> tuple[int, int | None]:
        """Returns where the pages of a layer lie, and their static scales, if they have such."""
        scales = self.static_scales
        return self.storage[layer].data_ptr(), None if scales is None else scales[layer].data_ptr()

    def _read_natively(self, layer: int, which: int, rows: Tensor) -> Tensor:
        output = torch.empty(len(rows), self.layout.head_dim)
        self._library.fp8_read(
            output.data_ptr(),
            *self.pointers(layer),
            rows.data_ptr(),
            len(rows),
            which,
            *self._sizes,
        )
        return output

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        layout = self.layout
        return layout.page_size, layout.num_kv_heads, layout.head_dim, layout.layer_page_bytes

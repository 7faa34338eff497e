"""`NativeAttention` computes single tokens of float32 on a CPU with
`engine/kernels/native/kernels.c`, or `fp8_pages.c`, and everything else with torch.

The C code reads K and V where they lie, once, block after block, with an online softmax (Milakov
and Gimelshein 2018). The bits of a sequence's result do not depend on the sequences beside it.
"""

from __future__ import annotations

from ctypes import CDLL
from dataclasses import replace

import torch
from torch import Tensor

from engine.attention.backend import AttentionForm
from engine.attention.torch_attention import TorchAttention
from engine.batches.batch import Batch, SliceGroup
from engine.cache.kv_cache import KVCache
from engine.cache.native_fp8_cache import NativeFp8Cache


class NativeAttention:
    """Splits each batch into prompts for torch and single tokens for the C library."""

    name = "native"

    def __init__(self, library: CDLL) -> None:
        self._library = library
        self._torch = TorchAttention()
        self._batch: Batch | None = None
        self._prompts: Batch | None = None
        """`_batch` without its single tokens. It is one object for all layers of a step, because
        `TorchAttention` makes a new plan whenever it is given another batch object."""

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        if batch.singles is None or not _takes(query, cache):
            return self._torch.forward(query, layer, cache, batch, form)
        query = query.contiguous()
        if batch.prompts is None:
            output = torch.empty_like(query)
        else:
            if batch is not self._batch:
                self._batch, self._prompts = batch, replace(batch, singles=None)
            assert self._prompts is not None
            output = self._torch.forward(query, layer, cache, self._prompts, form)
        self._attend(output, query, layer, cache, batch.singles, form)
        return output

    def _attend(
        self,
        output: Tensor,
        query: Tensor,
        layer: int,
        cache: KVCache,
        part: SliceGroup,
        form: AttentionForm,
    ) -> None:
        """Computes the rows of `part` and writes them into `output`."""
        layout = cache.layout
        pages: tuple[int | None, ...] = (cache.pool[layer].data_ptr(),)
        attention, stride = self._library.attention, tuple[int, ...]()
        if isinstance(cache, NativeFp8Cache):
            pages, stride = cache.pointers(layer), (layout.layer_page_bytes,)
            attention = self._library.fp8_attention
        attention(
            output[part.begin :].data_ptr(),
            query[part.begin :].data_ptr(),
            *pages,
            part.page_tables.data_ptr(),
            part.context_lengths.data_ptr(),
            part.num_slices,
            part.page_tables.shape[1],
            layout.page_size,
            layout.num_kv_heads,
            query.shape[1] // layout.num_kv_heads,
            layout.head_dim,
            *stride,
            form.window or 0,
            form.scale,
            form.softcap or 0.0,
            torch.get_num_threads(),
        )


def _takes(query: Tensor, cache: KVCache) -> bool:
    is_readable = isinstance(cache, NativeFp8Cache) or cache.pool.dtype == torch.float32
    return query.dtype == torch.float32 and is_readable

"""Makes the KV pool that a layout describes."""

from __future__ import annotations

from ctypes import CDLL

import torch
from torch import Tensor

from engine.cache.fp8_cache import Fp8Cache
from engine.cache.kv_cache import KVCache
from engine.cache.native_fp8_cache import NativeFp8Cache
from protocol.layout import FP8, KVLayout


def make_cache(
    layout: KVLayout,
    num_pages: int,
    device: torch.device,
    static_scales: Tensor | None = None,
    library: CDLL | None = None,
) -> KVCache:
    """Makes a pool of `num_pages` pages. `static_scales` are as `Fp8Cache` takes them; `library`
    has the native kernels of a CPU, and is None where there are none."""
    if layout.dtype != FP8:
        return KVCache(layout, num_pages, device)
    if library is not None:
        return NativeFp8Cache(layout, num_pages, static_scales, library)
    return Fp8Cache(layout, num_pages, device, static_scales)

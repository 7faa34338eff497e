"""How Triton kernels read and write the pages of a pool, whatever form its numbers have.

Numbers of eight bits are handled as bytes. GPUs from Hopper on convert them in hardware; for others
their bits are rearranged, with the same results.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.cache.kv_cache import KVCache


@dataclass(frozen=True)
class KernelPages:
    """One layer of a pool, as arguments of kernels."""

    values: Tensor
    """The pages' values; bytes, if they have eight bits."""
    scales: Tensor
    """As in `LayerPages`. It stands for nothing where there are no scales."""
    constants: dict[str, Any]
    """What a kernel is compiled for."""


def kernel_pages(cache: KVCache, layer: int) -> KernelPages:
    """Returns a layer of `cache`. Nothing is copied."""
    values, scales = cache.layer_pages(layer)
    layout = cache.layout
    constants = {
        "KV_HEADS": layout.num_kv_heads,
        "HEAD_DIM": layout.head_dim,
        "PAGE_SIZE": layout.page_size,
        "PAGE_STRIDE": values.stride(0),
        "SCALES": layout.scales,
        "HAS_FP8": bool(layout.scales) and _converts_fp8(values.device),
    }
    if scales is None:
        return KernelPages(values, values, constants)
    return KernelPages(values.view(torch.uint8), scales, constants)


@lru_cache
def _converts_fp8(device: torch.device) -> bool:
    """Says whether float32 becomes eight bits in one rounding on `device`. Ada's way would be over
    float16."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


@triton.jit
def widened(codes, dtype: tl.constexpr, HAS_FP8: tl.constexpr):
    """Returns what bytes mean, without a scale, as `dtype`, which has all these numbers."""
    if HAS_FP8:
        return codes.to(tl.float8e4nv, bitcast=True).to(dtype)
    # As float16 they have the same bits, moved by seven, and are 256 times as small.
    half = ((codes.to(tl.int16) << 8) >> 1) & -16512
    half = tl.where((half & 0x3F80) == 0x3F80, 0x7E00, half).to(tl.int16)
    return (half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0).to(dtype)


@triton.jit
def narrowed(numbers, HAS_FP8: tl.constexpr):
    """Rounds float32 to bytes as `engine/cache/fp8.py` does."""
    if HAS_FP8:
        return numbers.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    bits = numbers.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    code = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960
    small = magnitude.to(tl.float32, bitcast=True) + 16384.0  # the last bits count in 2 ** -9
    code = tl.where(magnitude < 0x3C800000, small.to(tl.int32, bitcast=True) - 0x46800000, code)
    code = tl.where(magnitude > 0x43E00000, 0x7E, code)  # the greatest
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)  # NaN
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def read_keys(
    values,
    scales,
    table,
    tokens,
    is_key,
    kv_head,
    dims,
    is_dim,
    dtype: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_FP8: tl.constexpr,
):
    """Loads K and V [tokens, dims] of one sequence from its pages, in `dtype`; they are 0 where not
    `is_key`. They are still to be multiplied by what it returns with them: scales [tokens] of K and
    of V, if there is one per token."""
    pages = tl.load(table + tokens // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
    heads = (tokens % PAGE_SIZE) * KV_HEADS + kv_head
    at = values + (pages * PAGE_STRIDE + heads * HEAD_DIM)[:, None] + dims[None, :]
    wanted = is_key[:, None] & is_dim[None, :]
    key = tl.load(at, mask=wanted, other=0)
    value = tl.load(at + PAGE_SIZE * KV_HEADS * HEAD_DIM, mask=wanted, other=0)
    key_scales = 1.0
    value_scales = 1.0
    if SCALES != "":
        key = widened(key, dtype, HAS_FP8)
        value = widened(value, dtype, HAS_FP8)
    if SCALES == "token":
        at = scales + pages * (PAGE_STRIDE // 2) + heads
        key_scales = tl.load(at, mask=is_key, other=0.0).to(tl.float32)
        value_scales = tl.load(at + PAGE_SIZE * KV_HEADS, mask=is_key, other=0.0).to(tl.float32)
    return key, value, key_scales, value_scales


@triton.jit
def weighed(weights, value_scales, SCALES: tl.constexpr):
    """Returns weights [rows, tokens] times the scales of the values, lifted so that a float16 keeps
    their bits: `unlifted` undoes that."""
    if SCALES == "token":
        return weights * (value_scales * 256.0)[None, :]
    return weights


@triton.jit
def unlifted(result, scales, kv_head, KV_HEADS: tl.constexpr, SCALES: tl.constexpr):
    """Returns sums of weighed values as they are meant: lowered again, or times the head's static
    scale."""
    if SCALES == "token":
        return result * 0.00390625
    if SCALES == "static":
        return result * tl.load(scales + KV_HEADS + kv_head)
    return result


@triton.jit
def score_scale(scale, scales, kv_head, SCALES: tl.constexpr):
    """Returns what scores of a KV head are multiplied by: `scale`, and the static scale of K."""
    if SCALES == "static":
        return scale * tl.load(scales + kv_head)
    return scale


@triton.jit
def write_heads(
    values,
    scales,
    heads,
    slot,
    is_value,
    kv_head,
    is_kv,
    dims,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_FP8: tl.constexpr,
):
    """Stores those of `heads` [heads, dims] of one token that `is_kv` at `slot`: V where
    `is_value`, else K, of the KV heads `kv_head` [heads]."""
    page, offset = slot // (2 * PAGE_SIZE), slot % (2 * PAGE_SIZE)
    places = (offset + tl.where(is_value, PAGE_SIZE, 0)) * KV_HEADS + kv_head
    at = values + (page * PAGE_STRIDE + places * HEAD_DIM)[:, None] + dims[None, :]
    wanted = is_kv[:, None] & (dims < HEAD_DIM)[None, :]
    if SCALES == "":
        tl.store(at, heads, mask=wanted)
    else:
        wide = heads.to(tl.float32)
        if SCALES == "token":
            greatest = tl.max(tl.abs(wide), 1)
            its = tl.maximum(
                (greatest * (1 / 448)).to(tl.float16).to(tl.float32), 5.9604644775390625e-08
            )
            tl.store(scales + page * (PAGE_STRIDE // 2) + places, its.to(tl.float16), mask=is_kv)
        else:
            which = tl.where(is_value, KV_HEADS, 0)
            its = tl.load(scales + which + kv_head, mask=is_kv, other=1.0)
        one = tl.full(its.shape, 1.0, tl.float32)
        tl.store(at, narrowed(wide * tl.div_rn(one, its)[:, None], HAS_FP8), mask=wanted)

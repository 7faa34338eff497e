"""`TritonKernels` do in one pass over memory each what plain torch does in several, on CUDA.

They sum in float32 and round once, where `TorchKernels` rounds its last result.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from engine.cache.kv_cache import KVCache
from engine.cache.triton_pages import kernel_pages, write_heads
from engine.dependent_launch import OPTION
from engine.kernels.activation import Activation
from engine.kernels.base import HeadNorms, HeadShape, Rotation, TorchKernels
from engine.kernels.packed.products import PackedProducts
from engine.kernels.packed_weights import PackedWeight

HEADS_PER_PROGRAM = 8
MUL_BLOCK = 1024


class TritonKernels(TorchKernels):
    """Fuses norms, activations and the splitting of heads, and multiplies packed weights as they
    are. Products with plain weights stay those of the vendor's library: a kernel of ours for up to
    four rows was slower on an H200 (decision 0039)."""

    def __init__(self, is_dependent: bool) -> None:
        """`is_dependent`: kernels are launched as `engine/dependent_launch.py` says."""
        self._launch: dict[str, Any] = {"IS_DEPENDENT": is_dependent}
        if is_dependent:
            self._launch[OPTION] = True
        self._packed = PackedProducts(is_dependent)

    def packed_linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        if not self._packed.takes(x):
            return super().packed_linear(x, weight, bias)
        return self._packed.linear(x, weight, bias)

    def grouped_packed_linear(self, x: Tensor, weight: PackedWeight, ends: Tensor) -> Tensor:
        if not self._packed.takes(x):
            return super().grouped_packed_linear(x, weight, ends)
        return self._packed.grouped(x, weight, ends)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        rows = x.reshape(-1, size)
        output = torch.empty_like(rows)
        _norm_kernel[(rows.shape[0],)](
            rows,
            rows,
            weight,
            output,
            rows.stride(0),
            eps,
            SIZE=size,
            BLOCK=triton.next_power_of_2(size),
            ADDS=False,
            num_warps=_warps(size),
            **self._launch,
        )
        return output.view(x.shape)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        num_rows, size = x.shape
        output = torch.empty_like(x)
        _norm_kernel[(num_rows,)](
            x,
            residual,
            weight,
            output,
            x.stride(0),
            eps,
            SIZE=size,
            BLOCK=triton.next_power_of_2(size),
            ADDS=True,
            num_warps=_warps(size),
            **self._launch,
        )
        return output, residual

    def activate_and_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        num_rows, both = gate_up.shape
        output = gate_up.new_empty(num_rows, both // 2)
        _activate_kernel[(num_rows, triton.cdiv(both // 2, MUL_BLOCK))](
            gate_up,
            output,
            INNER=both // 2,
            IS_SILU=activation == "silu",
            BLOCK=MUL_BLOCK,
            num_warps=4,
            **self._launch,
        )
        return output

    def heads(
        self,
        qkv: Tensor,
        shape: HeadShape,
        norms: HeadNorms | None,
        rope: Rotation,
        layer: int,
        cache: KVCache,
        write_slots: Tensor,
    ) -> Tensor:
        num_tokens = qkv.shape[0]
        query = qkv.new_empty(num_tokens, shape.num_heads, shape.head_dim)
        pages = kernel_pages(cache, layer)
        num_heads_all = shape.num_heads + 2 * shape.num_kv_heads
        _heads_kernel[(num_tokens, triton.cdiv(num_heads_all, HEADS_PER_PROGRAM))](
            qkv,
            query,
            pages.values,
            pages.scales,
            rope.cos,
            rope.sin,
            norms.query if norms is not None else qkv,
            norms.key if norms is not None else qkv,
            write_slots,
            norms.eps if norms is not None else 0.0,
            HEADS=shape.num_heads,
            DIM_BLOCK=triton.next_power_of_2(shape.head_dim),
            ROTARY_DIM=rope.cos.shape[-1],
            HAS_NORMS=norms is not None,
            BLOCK=HEADS_PER_PROGRAM,
            num_warps=4,
            **pages.constants,
            **self._launch,
        )
        return query


def _warps(size: int) -> int:
    return 4 if size <= 2048 else 8


@triton.jit
def _norm_kernel(
    x,
    residual,
    weight,
    output,
    stride,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    if IS_DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    if ADDS:
        at = residual + row * SIZE + columns
        values = (values + tl.load(at, mask=inside, other=0.0)).to(x.dtype.element_ty)
        tl.store(at, values, mask=inside)
    values = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / SIZE + eps)
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    normed = (values * scale * weights).to(output.dtype.element_ty)
    tl.store(output + row * SIZE + columns, normed, mask=inside)


@triton.jit
def _activate_kernel(
    gate_up,
    output,
    INNER: tl.constexpr,
    IS_SILU: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    if IS_DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < INNER
    at = gate_up + row * 2 * INNER + columns
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + INNER, mask=inside, other=0.0).to(tl.float32)
    if IS_SILU:
        active = gate * tl.sigmoid(gate)
    else:  # tanh(y) = 2 * sigmoid(2 * y) - 1, y = sqrt(2 / pi) * (x + 0.044715 * x ** 3)
        active = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    tl.store(output + row * INNER + columns, (active * up).to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["write_slots"])
def _heads_kernel(
    qkv,
    query,
    values,
    scales,
    cos,
    sin,
    query_norm,
    key_norm,
    write_slots,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    ROTARY_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_FP8: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    """Each program splits, norms, rotates and writes some heads of one token; of its heads, queries
    come first, then keys, then values."""
    if IS_DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, DIM_BLOCK)
    is_value = heads >= HEADS + KV_HEADS
    is_head = heads < HEADS + 2 * KV_HEADS
    inside = is_head[:, None] & (dims < HEAD_DIM)[None, :]
    half: tl.constexpr = ROTARY_DIM // 2
    swapped = tl.where(dims < half, dims + half, tl.where(dims < ROTARY_DIM, dims - half, dims))
    row = qkv + token * ((HEADS + 2 * KV_HEADS) * HEAD_DIM) + heads[:, None] * HEAD_DIM
    plain = tl.load(row + dims[None, :], mask=inside, other=0.0).to(tl.float32)
    other = tl.load(row + swapped[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_NORMS:
        scale = tl.rsqrt(tl.sum(plain * plain, 1) / HEAD_DIM + eps)[:, None]
        is_query = (heads < HEADS)[:, None]
        is_dim = dims < HEAD_DIM
        of_query = tl.load(query_norm + dims, mask=is_dim, other=0.0).to(tl.float32)[None, :]
        of_key = tl.load(key_norm + dims, mask=is_dim, other=0.0).to(tl.float32)[None, :]
        normed = plain * scale * tl.where(is_query, of_query, of_key)
        of_query = tl.load(query_norm + swapped, mask=is_dim, other=0.0).to(tl.float32)[None, :]
        of_key = tl.load(key_norm + swapped, mask=is_dim, other=0.0).to(tl.float32)[None, :]
        normed_other = other * scale * tl.where(is_query, of_query, of_key)
        plain = tl.where(is_value[:, None], plain, normed)
        other = tl.where(is_value[:, None], other, normed_other)
    is_turned = dims < ROTARY_DIM
    at = token * ROTARY_DIM + dims
    cosine = tl.load(cos + at, mask=is_turned, other=1.0).to(tl.float32)[None, :]
    sine = tl.load(sin + at, mask=is_turned, other=0.0).to(tl.float32)[None, :]
    result = tl.where(is_value[:, None], plain, plain * cosine + other * sine)
    result = result.to(query.dtype.element_ty)
    to_query = (heads < HEADS)[:, None] & inside
    at = query + (token * HEADS + heads[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(at, result, mask=to_query)
    slot = tl.load(write_slots + token).to(tl.int64)
    kv_head = tl.where(is_value, heads - HEADS - KV_HEADS, heads - HEADS)
    write_heads(
        values, scales, result, slot, is_value, kv_head, is_head & (heads >= HEADS), dims,
        KV_HEADS, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE, SCALES, HAS_FP8,
    )  # fmt: skip

"""`NativeKernels` compute in float32 on a CPU with `engine/kernels/native`.

In torch, a product of few rows takes several times as long as reading the weight does, and the rest
of a small model's step is hundreds of calls that compute next to nothing. Up to MOST_ROWS, the bits
of a row do not depend on how many rows are beside it.
"""

from __future__ import annotations

from ctypes import CDLL

import torch
from torch import Tensor

from engine.cache.kv_cache import KVCache
from engine.cache.native_fp8_cache import NativeFp8Cache
from engine.kernels.activation import Activation
from engine.kernels.base import HeadNorms, HeadShape, Rotation, TorchKernels
from engine.kernels.dequantise import inputs_of
from engine.kernels.native_packed import multiply, native_weight
from engine.kernels.packed_weights import Fp8Weight, PackedWeight

MOST_ROWS = 32
"""What is not a product is as fast in torch if it has more rows."""
ROWS_TOGETHER = 32
"""Rows that `linear.c` takes at a time."""
VECTOR = 16
"""Numbers that `linear.c` pads a row to a multiple of."""
WEIGHT_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What weights of a product lie in, by the numbers that `linear.c` has for them."""
FAST = ("AVX2", "AVX512")
"""What a CPU must have for `linear.c` to be faster than torch with many rows, too."""


class NativeKernels(TorchKernels):
    """Leaves to torch whatever the C functions do not take: many rows, other dtypes."""

    def __init__(self, library: CDLL, rounds_inputs: bool = False) -> None:
        """With `rounds_inputs`, inputs of packed weights of integers are rounded to eight bits."""
        self._library = library
        is_fast = torch.backends.cpu.get_cpu_capability() in FAST
        self._most_rows = None if is_fast else MOST_ROWS
        self.rounds_inputs = rounds_inputs

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiplies float32 with a weight of float32 or, exactly as with the same in float32, of
        16 bits."""
        dtype = WEIGHT_DTYPES.get(weight.dtype)
        if dtype is None or x.dtype is not torch.float32 or not weight.is_contiguous():
            return super().linear(x, weight, bias)
        num_rows = x.shape[0]
        if dtype == 0 and self._most_rows is not None and num_rows > self._most_rows:
            return super().linear(x, weight, bias)
        x = x.contiguous()
        output = x.new_empty(num_rows, weight.shape[0])
        arranged = x.new_empty(min(num_rows, ROWS_TOGETHER), weight.shape[1] + VECTOR)
        self._library.linear(
            output.data_ptr(),
            arranged.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            num_rows,
            *weight.shape,
            dtype,
            torch.get_num_threads(),
        )
        return output

    def packed_linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        native = native_weight(weight) if x.dtype is torch.float32 else None
        if native is None:
            return super().packed_linear(x, weight, bias)
        rounds = self.rounds_inputs and not isinstance(weight, Fp8Weight)
        return multiply(self._library, inputs_of(x, weight).contiguous(), native, bias, rounds)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not _takes(x, weight):
            return super().rms_norm(x, weight, eps)
        x = x.contiguous()
        output = torch.empty_like(x)
        self._library.rms_norm(
            output.data_ptr(), x.data_ptr(), weight.data_ptr(), _rows(x), x.shape[-1], eps
        )
        return output

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if not (_takes(x, weight) and residual.is_contiguous()):
            return super().add_rms_norm(x, residual, weight, eps)
        x = x.contiguous()
        output = torch.empty_like(x)
        self._library.add_rms_norm(
            output.data_ptr(),
            residual.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            _rows(x),
            x.shape[-1],
            eps,
        )
        return output, residual

    def activate_and_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        if not _takes(gate_up):
            return super().activate_and_mul(gate_up, activation)
        gate_up = gate_up.contiguous()
        num_rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        output = gate_up.new_empty(num_rows, inner)
        self._library.activate_and_mul(
            output.data_ptr(), gate_up.data_ptr(), num_rows, inner, activation != "silu"
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
        is_rounded = isinstance(cache, NativeFp8Cache)
        if not _takes(qkv, rope.cos, rope.sin, *([] if is_rounded else [cache.pool])):
            return super().heads(qkv, shape, norms, rope, layer, cache, write_slots)
        qkv = qkv.contiguous()
        query = qkv.new_empty(qkv.shape[0], shape.num_heads, shape.head_dim)
        pool, slots, page_size = cache.pool[layer], write_slots, cache.layout.page_size
        if is_rounded:  # into a page of their own; the cache rounds them from there
            page_size = qkv.shape[0]
            slots = torch.arange(page_size)
            pool = qkv.new_empty(2, page_size, shape.num_kv_heads, shape.head_dim)
        self._library.split_heads(
            query.data_ptr(),
            pool.data_ptr(),
            qkv.data_ptr(),
            slots.data_ptr(),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            None if norms is None else norms.query.data_ptr(),
            None if norms is None else norms.key.data_ptr(),
            0.0 if norms is None else norms.eps,
            qkv.shape[0],
            *shape,
            rope.cos.shape[-1],
            page_size,
        )
        if is_rounded:
            cache.write(layer, pool[0], pool[1], write_slots)
        return query


def _takes(x: Tensor, *others: Tensor) -> bool:
    """Says whether `x` has few rows of float32, and the others lie as the library expects them."""
    if x.shape[0] > MOST_ROWS or x.dtype is not torch.float32:
        return False
    for other in others:  # no generator: this is called hundreds of times a step
        if other.dtype is not torch.float32 or not other.is_contiguous():
            return False
    return True


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]

"""`Kernels` are the device functions that the model calls, apart from attention and
communication."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cache.kv_cache import KVCache
from engine.kernels.activation import Activation
from engine.kernels.dequantise import dequantise, inputs_of, inputs_of_groups
from engine.kernels.packed_weights import PackedWeight, expert_of


class HeadShape(NamedTuple):
    """How many heads of an attention layer one rank has."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class HeadNorms(NamedTuple):
    """Weights of the norms that queries and keys have, head by head, before they are rotated."""

    query: Tensor
    """[head_dim], like `key`."""
    key: Tensor
    eps: float


class Rotation(NamedTuple):
    """Cosines and sines for the rows of a step, [tokens, 1, rotary_dim] each. The first half of
    `sin` is negated already."""

    cos: Tensor
    sin: Tensor


class Kernels(Protocol):
    """Rows of arguments and results are tokens.

    No function waits for the device, and shapes of results depend on shapes of arguments alone, so
    that a CUDA graph can hold a call.
    """

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Takes [tokens, in], [out, in] and [out]; returns [tokens, out]."""

    def grouped_linear(self, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """Multiplies each group of rows by a weight of its own: rows [ends[g - 1], ends[g]) by
        weight[g].

        Takes [rows, in] and [groups, out, in]; returns [rows, out]. `ends` [groups] int32 rises to
        the number of rows.
        """

    def packed_linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        """Takes [tokens, in], a weight [out, in] and [out]; returns [tokens, out] in the dtype of
        `x`. Inputs are reordered and rounded as the weight says."""

    def grouped_packed_linear(self, x: Tensor, weight: PackedWeight, ends: Tensor) -> Tensor:
        """Does what `grouped_linear` does, with a packed weight [groups, out, in]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norms the last dimension, in float32. `weight` may be float32 where `x` is not."""

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Returns (norm of the sum, the sum). It may write the sum into `residual`."""

    def activate_and_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """Takes [tokens, 2 * inner]; returns activation(first half) * second half, [tokens,
        inner]."""

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
        """Splits `qkv` [tokens, (heads + 2 * kv_heads) * head_dim] into queries, keys and values,
        norms and rotates queries and keys, and writes K and V into `cache` at `write_slots`.

        Returns the queries [tokens, heads, head_dim]. It may write into `qkv`.
        """


class TorchKernels:
    """Computes with plain torch, on any device."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def grouped_linear(self, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        if x.device.type == "cuda":
            return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
        output = x.new_empty(x.shape[0], weight.shape[1])
        begin = 0
        for group, end in enumerate(ends.tolist()):
            if end > begin:
                output[begin:end] = self.linear(x[begin:end], weight[group], None)
            begin = end
        return output

    def packed_linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        return self.linear(inputs_of(x, weight), dequantise(weight).to(x.dtype), bias)

    def grouped_packed_linear(self, x: Tensor, weight: PackedWeight, ends: Tensor) -> Tensor:
        if x.device.type == "cuda":  # a loop would wait for the device
            inputs = inputs_of_groups(x, weight, ends)
            return self.grouped_linear(inputs, dequantise(weight).to(x.dtype), ends)
        return by_groups(self, x, weight, ends)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if weight.dtype == x.dtype:
            return F.rms_norm(x, weight.shape, weight, eps)
        return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        residual.add_(x)
        return self.rms_norm(residual, weight, eps), residual

    def activate_and_mul(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        if activation == "silu":
            return F.silu(gate).mul_(up)
        return F.gelu(gate, approximate="tanh").mul_(up)

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
        heads = qkv.unflatten(-1, (-1, shape.head_dim))
        num_rotated = shape.num_heads + shape.num_kv_heads
        query_key, value = heads.split((num_rotated, shape.num_kv_heads), dim=1)
        if norms is not None:
            query, key = query_key.split((shape.num_heads, shape.num_kv_heads), dim=1)
            query = self.rms_norm(query, norms.query, norms.eps)
            key = self.rms_norm(key, norms.key, norms.eps)
            query_key = torch.cat((query, key), dim=1)
        query_key = _rotate(query_key, rope)
        query, key = query_key.split((shape.num_heads, shape.num_kv_heads), dim=1)
        cache.write(layer, key, value, write_slots)
        return query


def by_groups(kernels: Kernels, x: Tensor, weight: PackedWeight, ends: Tensor) -> Tensor:
    """Computes `grouped_packed_linear` group by group, and waits for the device to tell `ends`."""
    outputs = [x.new_empty(0, weight[0].shape[1])]  # there may be no rows at all
    begin = 0
    for group, end in enumerate(ends.tolist()):
        if end > begin:
            outputs.append(kernels.packed_linear(x[begin:end], expert_of(weight, group), None))
        begin = end
    return torch.cat(outputs)


def _rotate(heads: Tensor, rope: Rotation) -> Tensor:
    """Rotates [tokens, heads, head_dim] in the half-split layout of Hugging Face weights.
    Dimensions past `rotary_dim` stay as they are."""
    rotary_dim = rope.cos.shape[-1]
    turned = heads[..., :rotary_dim]
    swapped = turned.roll(rotary_dim // 2, dims=-1)
    result = (turned * rope.cos).addcmul_(swapped, rope.sin)
    if rotary_dim == heads.shape[-1]:
        return result
    return torch.cat((result, heads[..., rotary_dim:]), dim=-1)

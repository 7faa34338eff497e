"""Attention over paged KV, behind one interface."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.batch import Batch, PromptPart, SingleTokens
from engine.kv_cache import KVCache


class AttentionBackend(Protocol):
    """Causal attention of every row over its own sequence's pages, new K and V included."""

    name: str

    def forward(self, query: Tensor, layer: int, cache: KVCache, batch: Batch) -> Tensor:
        """`query` [tokens, heads, head_dim] → the same shape and dtype."""


class TorchAttention:
    """In plain torch, for any device. Softmax in float32.

    Single tokens are one batched product over gathered pages; a prompt part is one call of
    scaled_dot_product_attention.
    """

    name = "torch"

    def __init__(self, sliding_window: int | None = None) -> None:
        self._window = sliding_window

    def forward(self, query: Tensor, layer: int, cache: KVCache, batch: Batch) -> Tensor:
        keys, values = cache.keys(layer), cache.values(layer)
        output = torch.empty_like(query)
        for part in batch.prompts:
            rows = slice(part.begin, part.end)
            output[rows] = self._prompt(query[rows], keys, values, part)
        singles = batch.singles
        if singles is not None:
            output[singles.rows] = self._singles(query[singles.rows], keys, values, singles)
        return output

    def _prompt(self, query: Tensor, keys: Tensor, values: Tensor, part: PromptPart) -> Tensor:
        """`query` [n, heads, head_dim]."""
        group = query.shape[1] // keys.shape[2]
        context = part.context_length
        # [context, kv_heads, head_dim] → [heads, context, head_dim]
        key = keys[part.pages].flatten(0, 1)[:context].repeat_interleave(group, dim=1)
        value = values[part.pages].flatten(0, 1)[:context].repeat_interleave(group, dim=1)
        whole = part.start == 0 and (self._window is None or context <= self._window)
        mask = None if whole else self._prompt_mask(part, query.device)
        output = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key.transpose(0, 1)[None],
            value.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=whole,
        )
        return output[0].transpose(0, 1)

    def _prompt_mask(self, part: PromptPart, device: torch.device) -> Tensor:
        """[new tokens, context] bool: which key a query sees."""
        queries = torch.arange(part.start, part.context_length, device=device)[:, None]
        keys = torch.arange(part.context_length, device=device)[None]
        mask = keys <= queries
        if self._window is not None:
            mask &= keys > queries - self._window
        return mask

    def _singles(
        self, query: Tensor, keys: Tensor, values: Tensor, singles: SingleTokens
    ) -> Tensor:
        """`query` [n, heads, head_dim]; one product for all sequences, padding masked."""
        num, num_heads, head_dim = query.shape
        kv_heads = keys.shape[2]
        key = keys[singles.page_tables].flatten(1, 2)  # [n, longest, kv_heads, head_dim]
        value = values[singles.page_tables].flatten(1, 2)
        grouped = query.view(num, kv_heads, num_heads // kv_heads, head_dim) * head_dim**-0.5
        scores = (grouped @ key.permute(0, 2, 3, 1)).float()  # [n, kv_heads, group, longest]
        slots = torch.arange(key.shape[1], device=query.device)
        lengths = singles.context_lengths[:, None]
        visible = slots < lengths
        if self._window is not None:
            visible &= slots >= lengths - self._window
        scores.masked_fill_(~visible[:, None, None], float("-inf"))
        weights = scores.softmax(dim=-1).to(query.dtype)
        return (weights @ value.transpose(1, 2)).reshape(num, num_heads, head_dim)

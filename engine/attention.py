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
    """In plain torch, for any device: `scaled_dot_product_attention`, softmax in float32.

    It knows no pages, so K and V of every context are first copied side by side: one copy per
    prompt part, and one for all single tokens, padded to the longest context of the batch.
    """

    name = "torch"

    def __init__(self, sliding_window: int | None = None) -> None:
        self._window = sliding_window

    def forward(self, query: Tensor, layer: int, cache: KVCache, batch: Batch) -> Tensor:
        output = torch.empty_like(query)
        for part in batch.prompts:
            rows = slice(part.begin, part.end)
            output[rows] = self._prompt(query[rows], layer, cache, part)
        singles = batch.singles
        if singles is not None:
            output[singles.rows] = self._singles(query[singles.rows], layer, cache, singles)
        return output

    def _prompt(self, query: Tensor, layer: int, cache: KVCache, part: PromptPart) -> Tensor:
        """`query` [n, heads, head_dim]."""
        key, value = cache.read(layer, part.slots)  # [context, kv_heads, head_dim]
        group = query.shape[1] // key.shape[1]
        within_window = self._window is None or part.context_length <= self._window
        whole = part.start == 0 and within_window
        output = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key.repeat_interleave(group, dim=1).transpose(0, 1)[None],
            value.repeat_interleave(group, dim=1).transpose(0, 1)[None],
            attn_mask=None if whole else self._prompt_mask(part, query.device),
            is_causal=whole,
        )  # [1, heads, n, head_dim]
        return output[0].transpose(0, 1)

    def _prompt_mask(self, part: PromptPart, device: torch.device) -> Tensor:
        """[new tokens, context] bool: which key a query sees."""
        queries = torch.arange(part.start, part.context_length, device=device)[:, None]
        keys = torch.arange(part.context_length, device=device)[None]
        mask = keys <= queries
        if self._window is not None:
            mask &= keys > queries - self._window
        return mask

    def _singles(self, query: Tensor, layer: int, cache: KVCache, singles: SingleTokens) -> Tensor:
        """`query` [n, heads, head_dim]; one product for all sequences, padding masked.

        The heads that share a KV head stand where several queries of one head would: they see
        the same keys, and so K and V need no repeating.
        """
        num, num_heads, head_dim = query.shape
        key, value = cache.read(layer, singles.slots)  # [n, longest, kv_heads, head_dim]
        kv_heads = key.shape[2]
        output = F.scaled_dot_product_attention(
            query.view(num, kv_heads, num_heads // kv_heads, head_dim),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=self._singles_mask(singles)[:, None, None],
        )  # [n, kv_heads, group, head_dim]
        return output.reshape(num, num_heads, head_dim)

    def _singles_mask(self, singles: SingleTokens) -> Tensor:
        """[n, longest] bool: which key of its context a query sees."""
        lengths = singles.context_lengths[:, None]
        tokens = torch.arange(singles.longest, device=lengths.device)
        mask = tokens < lengths
        if self._window is not None:
            mask &= tokens >= lengths - self._window
        return mask

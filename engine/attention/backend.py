"""Attention over paged KV: the interface that every back end implements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.cache.kv_cache import KVCache
from engine.steps.batch import Batch


@dataclass(frozen=True)
class AttentionForm:
    """What a layer's attention is, beside its shapes."""

    scale: float
    """Of the scores, before `softcap`."""
    window: int | None = None
    """A token attends to this many last tokens, itself included; None: to all."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap) (Gemma 2); None: they stay."""


class AttentionBackend(Protocol):
    """Causal attention of every row over its own sequence's pages, new K and V included."""

    name: str

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        """`query` [tokens, heads, head_dim] → the same shape and dtype."""

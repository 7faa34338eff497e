"""Attention over paged KV: the interface that every back end implements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.batches.batch import Batch
from engine.cache.kv_cache import KVCache


@dataclass(frozen=True)
class AttentionForm:
    """What the attention of a layer computes, apart from its shapes."""

    scale: float
    """Scores are multiplied by it, before `softcap` is applied."""
    window: int | None = None
    """The number of last tokens that a token attends to, itself included; None: it attends to
    all."""
    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap) (Gemma 2); None: they stay."""


class AttentionBackend(Protocol):
    """Computes causal attention of each row over the pages of its own sequence. The K and V of the
    batch's own rows must be in the pages already."""

    name: str

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        """Takes `query` [tokens, heads, head_dim]; returns the same shape and dtype."""

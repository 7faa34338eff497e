"""`TorchAttention` computes in plain torch, on any device. The other back ends are tested against
it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from engine.attention.backend import AttentionForm
from engine.attention.torch_prompts import PromptsPlan
from engine.attention.torch_singles import SinglesPlan
from engine.batches.batch import Batch, SliceGroup
from engine.cache.kv_cache import KVCache


class AttentionPlan(Protocol):
    """What is prepared for a part of a batch before its queries are known, such as index tensors
    and masks."""

    def forward(self, query: Tensor, layer: int, cache: KVCache, form: AttentionForm) -> Tensor:
        """Takes query [rows of the part, heads, head_dim]; returns the same shape."""


class TorchAttention:
    """Computes its softmax in float32. A step's first layer with a window makes the plans for it,
    which the step's other layers with that window use."""

    name = "torch"

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._plans: dict[int | None, list[tuple[SliceGroup, AttentionPlan]]] = {}

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        if batch is not self._batch:
            self._batch, self._plans = batch, {}
        if form.window not in self._plans:
            self._plans[form.window] = _plans(batch, cache, form.window, query.dtype)
        output = torch.empty_like(query)
        for part, plan in self._plans[form.window]:
            output[part.begin : part.end] = plan.forward(
                query[part.begin : part.end], layer, cache, form
            )
        return output


def _plans(
    batch: Batch, cache: KVCache, window: int | None, dtype: torch.dtype
) -> list[tuple[SliceGroup, AttentionPlan]]:
    plans: list[tuple[SliceGroup, AttentionPlan]] = []
    if batch.prompts is not None:
        plans.append((batch.prompts, PromptsPlan(batch.prompts, cache, window, dtype)))
    if batch.singles is not None:
        plans.append((batch.singles, SinglesPlan(batch.singles, cache, window)))
    return plans

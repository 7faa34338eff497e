"""`TorchAttention`: in plain torch, for any device; what the other back ends are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention import AttentionForm
from engine.batch import Batch, Part
from engine.kv_cache import KVCache, slots_of


class TorchAttention:
    """`scaled_dot_product_attention`, softmax in float32.

    It knows no pages, so K and V of every context are first copied side by side.
    """

    name = "torch"

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        output = torch.empty_like(query)
        for part in (batch.prompts, batch.singles):
            if part is None:
                continue
            for i in range(part.num_slices):
                begin = part.begin + int(part.row_starts_host[i])
                end = part.begin + int(part.row_starts_host[i + 1])
                output[begin:end] = self._one(query[begin:end], layer, cache, part, i, form)
        return output

    def _one(
        self, query: Tensor, layer: int, cache: KVCache, part: Part, i: int, form: AttentionForm
    ) -> Tensor:
        """`query` [n, heads, head_dim]."""
        context = int(part.context_lengths_host[i])
        page_size = cache.layout.page_size
        offsets = torch.arange(page_size, device=query.device)
        slots = slots_of(part.page_tables[i][:, None].long(), offsets, page_size)
        key, value = cache.read(layer, slots.flatten()[:context])
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        num = query.shape[0]
        queries = torch.arange(context - num, context, device=query.device)[:, None]
        keys = torch.arange(context, device=query.device)
        mask = keys <= queries
        if form.window is not None:
            mask &= keys > queries - form.window
        if form.softcap is None:
            return F.scaled_dot_product_attention(
                query.transpose(0, 1)[None],
                key.transpose(0, 1)[None],
                value.transpose(0, 1)[None],
                attn_mask=mask,
                scale=form.scale,
            )[0].transpose(0, 1)
        scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * form.scale
        scores = form.softcap * torch.tanh(scores / form.softcap)
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value.float()).to(query.dtype)

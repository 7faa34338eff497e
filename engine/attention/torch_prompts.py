"""`PromptsPlan` computes the attention of slices of several tokens, as a prefill step needs it.

A slice of more than `TILE` rows is computed alone, tile after tile, each over the keys that it can
see: K and V are gathered once, and one mask, as wide as the longest tile sees, serves all tiles.
Shorter slices of like length and context go together, padded.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.attention.backend import AttentionForm
from engine.attention.torch_keys import key_rows
from engine.cache.kv_cache import KVCache
from engine.steps.batch import SliceGroup

TILE = 128
"""Rows of a tile. Fewer make small products; with more, the mask throws many results away."""
CUDA_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""torch would offer tiles of a mask to cuDNN's kernel too, which cannot take them."""
GROUP_BYTES = 8 << 20
"""Most bytes of float32 keys that are gathered for slices that are computed together."""


@dataclass(frozen=True)
class _Alone:
    """A slice that is computed alone: rows [begin, end) of the part."""

    begin: int
    end: int
    key_rows: Tensor
    """[kv_heads * keys] rows of the pool."""
    tiles: list[tuple[slice, slice]]
    """Rows, counted from `begin`, and the keys that they see."""


@dataclass(frozen=True)
class _Together:
    """Slices that are computed together, padded to equally many rows and keys."""

    num_slices: int
    query_rows: Tensor
    """[slices * rows] rows of the part. A slice with fewer rows has its last one several times."""
    key_rows: Tensor
    """[slices * kv_heads * keys] rows of the pool."""
    mask: Tensor
    """[slices, 1, rows, keys], 0 or -inf."""


class PromptsPlan:
    """Which slices go together, which keys they see, and the masks for them. `window` as in
    `AttentionForm`; masks have `dtype`."""

    def __init__(
        self, part: SliceGroup, cache: KVCache, window: int | None, dtype: torch.dtype
    ) -> None:
        begins, ends = part.row_starts_host[:-1], part.row_starts_host[1:]
        stops = part.context_lengths_host
        starts = stops - (ends - begins)
        firsts = np.zeros_like(stops) if window is None else np.maximum(starts + 1 - window, 0)
        counts = stops - firsts
        groups = _groups(ends - begins, counts, cache)
        self._alone = [
            _Alone(
                begin=int(begins[i]),
                end=int(ends[i]),
                key_rows=key_rows(part, cache, group, firsts[group], counts[group], int(counts[i])),
                tiles=_tiles(int(starts[i]), int(stops[i]), int(firsts[i]), window),
            )
            for group in groups
            if len(group) == 1
            for i in group
        ]
        widest = max((k.stop - k.start for a in self._alone for _, k in a.tiles), default=0)
        queries = np.arange(widest - TILE, widest)[:, None]
        self._mask = _mask(queries, np.arange(widest), window, dtype).to(part.page_tables.device)
        """[TILE, most keys], for a tile whose last row sees the last key. A smaller tile takes the
        lower right corner."""
        self._together = [
            _together(part, cache, window, dtype, group, firsts[group])
            for group in groups
            if len(group) > 1
        ]

    def forward(self, query: Tensor, layer: int, cache: KVCache, form: AttentionForm) -> Tensor:
        """Takes query [rows, heads, head_dim]; returns the same shape."""
        keys, values = cache.heads(layer)
        shape = (cache.layout.num_kv_heads, -1, cache.layout.head_dim)
        output = torch.empty_like(query)
        for alone in self._alone:
            key = keys.index_select(0, alone.key_rows).view(1, *shape)
            value = values.index_select(0, alone.key_rows).view(1, *shape)
            its_query = query[alone.begin : alone.end].transpose(0, 1)[None]
            its_output = output[alone.begin : alone.end].transpose(0, 1)[None]
            for rows, seen in alone.tiles:
                mask = self._mask[rows.start - rows.stop :, seen.start - seen.stop :]
                its_output[:, :, rows] = _attend(
                    its_query[:, :, rows], key[:, :, seen], value[:, :, seen], mask, form
                )
        for group in self._together:
            size = group.num_slices
            key = keys.index_select(0, group.key_rows).unflatten(0, (size, shape[0], -1))
            value = values.index_select(0, group.key_rows).unflatten(0, (size, shape[0], -1))
            its_query = query.index_select(0, group.query_rows).unflatten(0, (size, -1))
            result = _attend(its_query.transpose(1, 2), key, value, group.mask, form)
            # Padding wrote some rows several times, each time with the same value.
            output.index_copy_(0, group.query_rows, result.transpose(1, 2).flatten(0, 1))
        return output


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, form: AttentionForm) -> Tensor:
    """Takes `query` [n, heads, rows, head_dim], `key` and `value` [n, kv_heads, keys, head_dim] and
    `mask` [rows, keys] or [n, 1, rows, keys], 0 or -inf; returns [n, heads, rows, head_dim]."""
    if form.softcap is None:
        with sdpa_kernel(CUDA_KERNELS) if query.is_cuda else nullcontext():
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=form.scale, enable_gqa=True
            )
    output = torch.empty_like(query)
    group = query.shape[1] // key.shape[1]
    for head in range(
        key.shape[1]
    ):  # one after another: the scores of all heads would take much memory
        its = slice(head * group, (head + 1) * group)
        queries = (query[:, its].float() * (form.scale / form.softcap)).flatten(1, 2)
        scores = torch.bmm(queries, key[:, head].float().transpose(1, 2))
        scores = scores.tanh_().mul_(form.softcap).unflatten(1, (group, -1)).add_(mask)
        weights = scores.softmax(-1).flatten(1, 2)
        output[:, its] = torch.bmm(weights, value[:, head].float()).unflatten(1, (group, -1))
    return output


def _mask(queries: np.ndarray, keys: np.ndarray, window: int | None, dtype: torch.dtype) -> Tensor:
    """Returns 0 where the query at one position sees the key at another, else -inf. The arrays of
    positions broadcast."""
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), -torch.inf)


def _groups(lengths: np.ndarray, num_keys: np.ndarray, cache: KVCache) -> list[np.ndarray]:
    """Returns the slices that are computed together. Their numbers of rows lie between the same
    powers of 2, their numbers of keys between the same quarter powers of 2, and their keys take no
    more than `GROUP_BYTES`."""
    layout = cache.layout
    size = np.stack((np.ceil(np.log2(lengths)), np.ceil(np.log2(num_keys) * 4)))
    short = np.flatnonzero(lengths <= TILE)
    groups = [np.array([i]) for i in np.flatnonzero(lengths > TILE)]
    for bucket in np.unique(size[:, short], axis=1).T:
        its = short[(size[:, short] == bucket[:, None]).all(axis=0)]
        slice_bytes = int(num_keys[its].max()) * layout.num_kv_heads * layout.head_dim * 4
        most = max(1, GROUP_BYTES // slice_bytes)
        groups += np.split(its, range(most, len(its), most))
    return groups


def _tiles(start: int, stop: int, first: int, window: int | None) -> list[tuple[slice, slice]]:
    """Cuts the slice [start, stop) of a sequence into tiles of nearly equal size; returns the rows
    of each, counted from `start`, and the keys that it sees, counted from `first`."""
    size = -(-(stop - start) // -(-(stop - start) // TILE))
    tiles = []
    for begin in range(start, stop, size):
        end = min(begin + size, stop)
        seen = first if window is None else max(first, begin + 1 - window)
        tiles.append((slice(begin - start, end - start), slice(seen - first, end - first)))
    return tiles


def _together(
    part: SliceGroup,
    cache: KVCache,
    window: int | None,
    dtype: torch.dtype,
    group: np.ndarray,
    firsts: np.ndarray,
) -> _Together:
    begins, stops = part.row_starts_host[group], part.context_lengths_host[group]
    lengths = part.row_starts_host[group + 1] - begins
    counts = stops - firsts
    rows = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)  # [slices, most rows]
    queries = ((stops - lengths)[:, None] + rows)[:, :, None]
    columns = np.arange(counts.max())
    # Padding is given a position behind every query, so that causality masks it.
    keys = firsts[:, None] + np.where(columns < counts[:, None], columns, stops.max())
    device = part.page_tables.device
    return _Together(
        num_slices=len(group),
        query_rows=torch.from_numpy((begins[:, None] + rows).flatten()).to(device),
        key_rows=key_rows(part, cache, group, firsts, counts, int(counts.max())),
        mask=_mask(queries, keys[:, None], window, dtype)[:, None].to(device),
    )

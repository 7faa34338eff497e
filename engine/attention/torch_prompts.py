"""`PromptsPlan` computes the attention of slices of several tokens, as a prefill step needs it.

A slice of more than `TILE` rows is computed alone, tile after tile, each over the keys that it can
see: K and V are gathered once, and one mask, as wide as the longest tile sees, serves all tiles.
Shorter slices of like length and context go together, padded.

In half precision a CPU's library compiles a kernel for every number of keys that it meets and keeps
it for good, so there a tile is given a multiple of `KEY_STEP` keys, of which a mask hides the last.
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
from engine.batches.batch import SliceGroup
from engine.cache.kv_cache import KVCache

TILE = 128
"""Rows of a tile. Fewer make small products; with more, the mask throws many results away."""
CUDA_KERNELS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""torch would offer tiles of a mask to cuDNN's kernel too, which cannot take them."""
KEY_STEP = 64
"""Keys of a tile are padded to a multiple of this where each number of keys costs memory."""
GROUP_BYTES = 8 << 20
"""Most bytes of float32 keys that are gathered for slices that are computed together."""


@dataclass(frozen=True)
class _Tile:
    """Rows of a slice, counted from its first one, and the keys that are gathered for them: those
    that its last row sees, and `num_padding` behind them."""

    rows: slice
    keys: slice
    num_padding: int

    @property
    def num_seen(self) -> int:
        return self.keys.stop - self.keys.start - self.num_padding


@dataclass(frozen=True)
class _Alone:
    """A slice that is computed alone: rows [begin, end) of the part."""

    begin: int
    end: int
    key_rows: Tensor
    """[kv_heads * keys] rows of the pool."""
    tiles: list[_Tile]


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
    """Decides which slices go together and which keys they see, and makes the masks for them.
    `window` is as in `AttentionForm`; masks have `dtype`."""

    def __init__(
        self, part: SliceGroup, cache: KVCache, window: int | None, dtype: torch.dtype
    ) -> None:
        begins, ends = part.row_starts_host[:-1], part.row_starts_host[1:]
        stops = part.context_lengths_host
        starts = stops - (ends - begins)
        firsts = np.zeros_like(stops) if window is None else np.maximum(starts + 1 - window, 0)
        counts = stops - firsts
        groups = _groups(ends - begins, counts, cache)
        device = part.page_tables.device
        step = _key_step(device, dtype)
        self._alone = [
            _alone(part, cache, int(group[0]), firsts, counts, window, step)
            for group in groups
            if len(group) == 1
        ]
        self._widest = max((t.num_seen for a in self._alone for t in a.tiles), default=0)
        queries = np.arange(self._widest - TILE, self._widest)[:, None]
        columns = np.arange(self._widest + step - 1)
        self._mask = _mask(queries, columns, window, dtype).to(device)
        """[TILE, most keys and padding], for a tile whose last row sees the key `_widest` - 1."""
        self._together = [
            _together(part, cache, window, dtype, group, firsts[group], step)
            for group in groups
            if len(group) > 1
        ]

    def forward(self, query: Tensor, layer: int, cache: KVCache, form: AttentionForm) -> Tensor:
        """Takes query [rows, heads, head_dim]; returns the same shape."""
        shape = (cache.layout.num_kv_heads, -1, cache.layout.head_dim)
        output = torch.empty_like(query)
        for alone in self._alone:
            key = cache.keys(layer, alone.key_rows, query.dtype).view(1, *shape)
            value = cache.values(layer, alone.key_rows, query.dtype).view(1, *shape)
            its_query = query[alone.begin : alone.end].transpose(0, 1)[None]
            its_output = output[alone.begin : alone.end].transpose(0, 1)[None]
            for tile in alone.tiles:
                its_output[:, :, tile.rows] = _attend(
                    its_query[:, :, tile.rows],
                    key[:, :, tile.keys],
                    value[:, :, tile.keys],
                    self._mask_of(tile),
                    form,
                )
        for group in self._together:
            size = group.num_slices
            key = cache.keys(layer, group.key_rows, query.dtype)
            key = key.unflatten(0, (size, shape[0], -1))
            value = cache.values(layer, group.key_rows, query.dtype)
            value = value.unflatten(0, (size, shape[0], -1))
            its_query = query.index_select(0, group.query_rows).unflatten(0, (size, -1))
            result = _attend(its_query.transpose(1, 2), key, value, group.mask, form)
            # Padding wrote some rows several times, each time with the same value.
            output.index_copy_(0, group.query_rows, result.transpose(1, 2).flatten(0, 1))
        return output

    def _mask_of(self, tile: _Tile) -> Tensor:
        """Returns the mask of a tile, [rows, keys]."""
        columns = slice(self._widest - tile.num_seen, self._widest + tile.num_padding)
        return self._mask[tile.rows.start - tile.rows.stop :, columns]


def _key_step(device: torch.device, dtype: torch.dtype) -> int:
    return KEY_STEP if device.type == "cpu" and dtype != torch.float32 else 1


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


def _alone(
    part: SliceGroup,
    cache: KVCache,
    index: int,
    firsts: np.ndarray,
    counts: np.ndarray,
    window: int | None,
    step: int,
) -> _Alone:
    begin, end = (int(row) for row in part.row_starts_host[index : index + 2])
    first, stop = int(firsts[index]), int(part.context_lengths_host[index])
    tiles = _tiles(stop - (end - begin), stop, first, window, step)
    its = np.array([index])
    num_keys = max(tile.keys.stop for tile in tiles)
    rows = key_rows(part, cache, its, firsts[its], counts[its], num_keys)
    return _Alone(begin, end, rows, tiles)


def _tiles(start: int, stop: int, first: int, window: int | None, step: int) -> list[_Tile]:
    """Cuts the slice [start, stop) of a sequence, whose keys are gathered from `first` on, into
    tiles of nearly equal size."""
    size = -(-(stop - start) // -(-(stop - start) // TILE))
    tiles = []
    for begin in range(start, stop, size):
        end = min(begin + size, stop)
        seen = first if window is None else max(first, begin + 1 - window)
        num_padding = -(end - seen) % step
        keys = slice(seen - first, end - first + num_padding)
        tiles.append(_Tile(slice(begin - start, end - start), keys, num_padding))
    return tiles


def _together(
    part: SliceGroup,
    cache: KVCache,
    window: int | None,
    dtype: torch.dtype,
    group: np.ndarray,
    firsts: np.ndarray,
    step: int,
) -> _Together:
    begins, stops = part.row_starts_host[group], part.context_lengths_host[group]
    lengths = part.row_starts_host[group + 1] - begins
    counts = stops - firsts
    rows = np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)  # [slices, most rows]
    queries = ((stops - lengths)[:, None] + rows)[:, :, None]
    num_keys = -(-int(counts.max()) // step) * step
    columns = np.arange(num_keys)
    # Padding is given a position behind every query, so that causality masks it.
    keys = firsts[:, None] + np.where(columns < counts[:, None], columns, stops.max())
    device = part.page_tables.device
    return _Together(
        num_slices=len(group),
        query_rows=torch.from_numpy((begins[:, None] + rows).flatten()).to(device),
        key_rows=key_rows(part, cache, group, firsts, counts, num_keys),
        mask=_mask(queries, keys[:, None], window, dtype)[:, None].to(device),
    )

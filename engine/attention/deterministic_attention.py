"""`DeterministicAttention`: a row's bits depend on its own sequence alone.

Whatever else is in the batch, however a prompt was cut into chunks, and whether its beginning was
cached, a query meets the keys in the same blocks, which are aligned at position 0 and are added one
after another (online softmax, Milakov & Gimelshein 2018), in products of one fixed shape. A block
that a query sees nothing of changes none of its bits: it weighs exactly 0, and what was summed is
scaled by exp(0) = 1. So rows that share a product may see different numbers of blocks.

It relies on a matrix product, of one shape, giving a row the same bits wherever in it the row
stands; tests hold this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention.backend import AttentionForm
from engine.attention.torch_keys import key_rows
from engine.batches.batch import Batch, SliceGroup
from engine.cache.kv_cache import KVCache

BLOCK = 128
"""The number of keys in a block."""
ROWS = 16
"""A tile has a multiple of this many rows: the queries of some tokens and of all heads that share a
KV head, then padding."""
TILES = 4
"""The number of tiles in one product."""
LOWEST = -1e30
"""The highest score of a row that has seen no key yet. It is finite, because -inf - -inf is NaN."""


@dataclass(frozen=True)
class _Block:
    key_rows: Tensor
    """[TILES * kv_heads * BLOCK] rows of the pool."""
    hidden: Tensor | None
    """[TILES, 1, rows, BLOCK] bool, true for keys that a query does not see; None if each sees
    all."""


@dataclass(frozen=True)
class _TileProduct:
    """A number of `TILES` tiles, with the blocks of keys that any of them sees."""

    tokens: Tensor
    """[TILES * tokens of a tile] rows of the batch. Padding repeats a row."""
    blocks: list[_Block]


class DeterministicAttention:
    """Computes in float32, on any device. A step's first layer with a window makes the plan for it,
    which the step's other layers with that window use."""

    name = "deterministic"

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._plans: dict[int | None, list[_TileProduct]] = {}

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        if batch is not self._batch:
            self._batch, self._plans = batch, {}
        num_kv_heads = cache.layout.num_kv_heads
        group = query.shape[1] // num_kv_heads
        if form.window not in self._plans:
            self._plans[form.window] = [
                product
                for part in (batch.prompts, batch.singles)
                if part is not None
                for product in _products(part, cache, group, form.window)
            ]
        output = torch.empty_like(query)
        for product in self._plans[form.window]:
            tiles = query.index_select(0, product.tokens).float().mul_(form.scale)
            # [TILES, tokens, kv_heads, group, head_dim] → [TILES * kv_heads, rows, head_dim]
            tiles = tiles.view(TILES, -1, num_kv_heads, group, query.shape[2]).transpose(1, 2)
            tiles = tiles.flatten(2, 3).flatten(0, 1)
            num_rows = tiles.shape[1]
            tiles = F.pad(tiles, (0, 0, 0, _padded(num_rows) - num_rows))
            result = _attend(tiles, product.blocks, cache, layer, form)[:, :num_rows]
            result = result.view(TILES, num_kv_heads, -1, group, query.shape[2]).transpose(1, 2)
            result = result.reshape(-1, *query.shape[1:]).to(query.dtype)
            output.index_copy_(0, product.tokens, result)
        return output


def _attend(
    query: Tensor, blocks: list[_Block], cache: KVCache, layer: int, form: AttentionForm
) -> Tensor:
    """Computes attention over `blocks`, one after another. Takes `query` [TILES * kv_heads, rows,
    head_dim]; returns the same shape."""
    shape = (-1, BLOCK, cache.layout.head_dim)
    summed = torch.zeros_like(query)
    total = query.new_zeros(*query.shape[:2], 1)
    highest = torch.full_like(total, LOWEST)
    for block in blocks:
        key = cache.keys(layer, block.key_rows, torch.float32).view(shape)
        scores = torch.bmm(query, key.transpose(1, 2))
        if form.softcap is not None:
            scores.div_(form.softcap).tanh_().mul_(form.softcap)
        if block.hidden is not None:
            scores.unflatten(0, (TILES, -1)).masked_fill_(block.hidden, -torch.inf)
        # Online softmax: what was summed is scaled down if a higher score comes.
        before, highest = highest, torch.maximum(highest, scores.amax(-1, keepdim=True))
        weights = scores.sub_(highest).exp_()
        kept = before.sub_(highest).exp_()
        value = cache.values(layer, block.key_rows, torch.float32).view(shape)
        summed.mul_(kept).add_(torch.bmm(weights, value))
        total.mul_(kept).add_(weights.sum(-1, keepdim=True))
    return summed.div_(total)


def _padded(rows: int) -> int:
    return -(-rows // ROWS) * ROWS


def _products(
    part: SliceGroup, cache: KVCache, group: int, window: int | None
) -> list[_TileProduct]:
    """Cuts the part's slices into tiles and plans their products. `group` heads share a KV head."""
    size = max(1, ROWS // group)  # tokens of a tile
    begins, lengths = part.row_starts_host[:-1], np.diff(part.row_starts_host)
    num_tiles = -(-lengths // size)
    owners = np.repeat(np.arange(part.num_slices), num_tiles)
    places = np.arange(len(owners)) - np.repeat(num_tiles.cumsum() - num_tiles, num_tiles)
    tokens = places[:, None] * size + np.arange(size)  # of its slice, [tiles, tokens]
    tokens = np.minimum(tokens, lengths[owners][:, None] - 1)
    positions = tokens + (part.context_lengths_host - lengths)[owners][:, None]
    tokens += begins[owners][:, None] + part.begin
    # Tiles that see equally far go together; the last ones are repeated to fill a product.
    order = np.argsort(positions[:, -1], kind="stable")
    order = np.append(order, np.repeat(order[-1:], -len(order) % TILES)).reshape(-1, TILES)
    return [
        _product(part, cache, group, window, owners[its], tokens[its], positions[its])
        for its in order
    ]


def _product(
    part: SliceGroup,
    cache: KVCache,
    group: int,
    window: int | None,
    owners: np.ndarray,
    tokens: np.ndarray,
    positions: np.ndarray,
) -> _TileProduct:
    """Plans one product. `tokens` [TILES, tokens] are rows of the batch, which stand at `positions`
    in the sequences `owners`."""
    device = part.page_tables.device
    queries = np.repeat(positions, group, axis=1)  # [TILES, rows]
    queries = np.pad(queries, ((0, 0), (0, _padded(queries.shape[1]) - queries.shape[1])), "edge")
    first = 0 if window is None else max(0, int(positions.min()) + 1 - window) // BLOCK
    blocks = []
    for begin in range(first * BLOCK, int(positions.max()) + 1, BLOCK):
        keys = np.arange(begin, begin + BLOCK)
        hidden = keys > queries[:, :, None]
        if window is not None:
            hidden |= keys <= queries[:, :, None] - window
        starts = np.full(TILES, begin)
        # A tile that ends before this block takes its own last key, hidden from it.
        starts = np.minimum(starts, part.context_lengths_host[owners] - 1)
        counts = np.minimum(part.context_lengths_host[owners] - starts, BLOCK)
        rows = key_rows(part, cache, owners, starts, counts, BLOCK)
        mask = torch.from_numpy(hidden[:, None]).to(device) if hidden.any() else None
        blocks.append(_Block(rows, mask))
    return _TileProduct(torch.from_numpy(tokens.flatten()).to(device), blocks)

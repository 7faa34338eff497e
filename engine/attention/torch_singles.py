"""`SinglesPlan` computes the attention of single tokens over their contexts, as a decode step needs
it.

Every context is cut into blocks of at most `BLOCK_BYTES` of keys. Blocks of like length, of
whatever sequences, make up one batched product: their K are gathered, met with the queries, then
their V are gathered into the memory that the K had. So what is gathered stays in the CPU's cache
until it is used, however long a context is, and a long one costs its neighbours nothing. Blocks of
one sequence are then weighed against one another (Flash-Decoding, Dao et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionForm
from engine.attention.torch_keys import key_rows
from engine.batches.batch import SliceGroup
from engine.cache.kv_cache import KVCache

BLOCK_BYTES = 1 << 20
"""Bytes of float32 keys that are gathered at once. From 32 MiB on malloc takes memory from the
system anew each time, which costs ten times what is done with it."""
MAX_PADDING = 0.25
"""Largest share of padding among the keys of one product."""
FREE_PADDING_BYTES = BLOCK_BYTES // 16
"""So much padding is always allowed, because it costs less than one more product would."""


@dataclass(frozen=True)
class _SinglesProduct:
    """Blocks [begin, end) of the plan, each padded to `num_keys` keys."""

    begin: int
    end: int
    num_keys: int
    key_rows: Tensor
    """[blocks * kv_heads * num_keys] rows of the pool."""
    padding: Tensor | None
    """[blocks, 1, 1, num_keys] bool, true for padding; None if there is none."""


class SinglesPlan:
    """The blocks of all contexts and the products that they make up. `window` as in
    `AttentionForm`."""

    def __init__(self, part: SliceGroup, cache: KVCache, window: int | None) -> None:
        contexts = part.context_lengths_host
        firsts = np.zeros_like(contexts) if window is None else np.maximum(contexts - window, 0)
        token_bytes = cache.layout.num_kv_heads * cache.layout.head_dim * 4
        owners, firsts, counts = _blocks(firsts, contexts, max(1, BLOCK_BYTES // token_bytes))
        bounds = [0]
        while bounds[-1] < len(counts):
            bounds.append(bounds[-1] + _num_in_product(counts[bounds[-1] :], token_bytes))
        device = part.page_tables.device
        self._products = [
            _product(part, cache, (begin, end), owners, firsts, counts)
            for begin, end in pairwise(bounds)
        ]
        self._owners = torch.from_numpy(owners).to(device)
        self._blocks_of: Tensor | None = None
        if len(owners) > part.num_slices:
            self._blocks_of = torch.from_numpy(_table(owners, part.num_slices)).to(device)

    def forward(self, query: Tensor, layer: int, cache: KVCache, form: AttentionForm) -> Tensor:
        """Takes query [slices, heads, head_dim]; returns the same shape in float32."""
        num_heads, head_dim = query.shape[1:]
        num_kv_heads = cache.layout.num_kv_heads
        queries = (query.float() * form.scale).index_select(0, self._owners)
        queries = queries.view(-1, num_heads // num_kv_heads, head_dim)  # the heads of a KV head
        output = torch.empty_like(queries)
        top = queries.new_empty(*queries.shape[:2], 1)
        total = torch.empty_like(top)
        for product in self._products:
            its = slice(product.begin * num_kv_heads, product.end * num_kv_heads)
            shape = (-1, product.num_keys, head_dim)
            key = cache.keys(layer, product.key_rows, torch.float32).view(shape)
            scores = torch.bmm(queries[its], key.transpose(1, 2))
            if form.softcap is not None:
                scores.div_(form.softcap).tanh_().mul_(form.softcap)
            if product.padding is not None:
                scores.unflatten(0, (-1, num_kv_heads)).masked_fill_(product.padding, -torch.inf)
            torch.amax(scores, -1, keepdim=True, out=top[its])
            torch.sum(scores.sub_(top[its]).exp_(), -1, keepdim=True, out=total[its])
            del key  # so that the values are gathered into the same memory, which is in the cache
            value = cache.values(layer, product.key_rows, torch.float32).view(shape)
            torch.bmm(scores, value, out=output[its])
        return self._joined(*(t.view(-1, num_heads, t.shape[-1]) for t in (output, top, total)))

    def _joined(self, output: Tensor, top: Tensor, total: Tensor) -> Tensor:
        """Joins the blocks of each slice; returns [slices, heads, head_dim].

        `output` [blocks, heads, head_dim] is each block's sum of values weighed by
        exp(score - top); `top` and `total` [blocks, heads, 1] are the block's highest score and the
        sum of its weights.
        """
        if self._blocks_of is None:
            return torch.empty_like(output).index_copy_(0, self._owners, output.div_(total))
        tops = torch.cat((top, top.new_full((1, *top.shape[1:]), -torch.inf)))
        highest = tops[self._blocks_of].amax(1)  # [slices, heads, 1]
        weight = torch.exp(top - highest.index_select(0, self._owners))
        shape = (len(highest), *output.shape[1:])
        numerator = output.new_zeros(shape).index_add_(0, self._owners, output.mul_(weight))
        denominator = torch.zeros_like(highest).index_add_(0, self._owners, total.mul_(weight))
        return numerator.div_(denominator)


def _blocks(
    firsts: np.ndarray, stops: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts each range of keys evenly into blocks of at most `most`.

    Returns for each block the number of its range, its first key and its number of keys. The
    longest blocks come first, so that those of like length are neighbours.
    """
    num_blocks = -(-(stops - firsts) // most)
    owners = np.repeat(np.arange(len(stops)), num_blocks)
    size = (-(-(stops - firsts) // num_blocks))[owners]
    places = np.arange(len(owners)) - np.repeat(num_blocks.cumsum() - num_blocks, num_blocks)
    begins = firsts[owners] + places * size
    counts = np.minimum(size, stops[owners] - begins)
    order = np.argsort(-counts, kind="stable")
    return owners[order], begins[order], counts[order]


def _num_in_product(counts: np.ndarray, token_bytes: int) -> int:
    """Returns how many of the first blocks go into one product. `counts` descends."""
    longest = counts[0]
    counts = counts[: max(1, BLOCK_BYTES // int(longest * token_bytes))]
    padding = (longest - counts).cumsum()
    allowed = MAX_PADDING * counts.cumsum() + FREE_PADDING_BYTES // token_bytes
    return int(np.searchsorted(padding > allowed, True))


def _product(
    part: SliceGroup,
    cache: KVCache,
    bounds: tuple[int, int],
    owners: np.ndarray,
    firsts: np.ndarray,
    counts: np.ndarray,
) -> _SinglesProduct:
    its = slice(*bounds)
    num_keys = int(counts[its][0])
    padding = torch.from_numpy(np.arange(num_keys) >= counts[its][:, None, None, None])
    return _SinglesProduct(
        begin=bounds[0],
        end=bounds[1],
        num_keys=num_keys,
        key_rows=key_rows(part, cache, owners[its], firsts[its], counts[its], num_keys),
        padding=padding.to(part.page_tables.device) if padding.any() else None,
    )


def _table(owners: np.ndarray, num_slices: int) -> np.ndarray:
    """Returns the blocks of each slice [slices, most blocks], padded with the number of all
    blocks."""
    num_blocks = np.bincount(owners, minlength=num_slices)
    table = np.full((num_slices, num_blocks.max()), len(owners))
    order = np.argsort(owners, kind="stable")
    table[np.arange(table.shape[1]) < num_blocks[:, None]] = order
    return table

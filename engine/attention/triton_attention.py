"""`TritonAttention` has paged attention kernels for CUDA that need no package but torch and triton.

For prompts, one program per block of query rows and head walks the keys that it sees with an online
softmax (FlashAttention-2, Dao 2023). Single tokens are computed by `TritonSingles`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.attention.backend import AttentionForm
from engine.attention.triton_singles import TritonSingles, capped, read_keys
from engine.batches.batch import Batch, SliceGroup
from engine.cache.kv_cache import KVCache


class TritonAttention:
    """Kernels are compiled when a shape is first used. They multiply float32 in full precision."""

    name = "triton"

    def __init__(self, num_processors: int) -> None:
        """`num_processors` is how many multiprocessors the device has."""
        self._singles = TritonSingles(num_processors)

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        output = torch.empty_like(query)
        if (part := batch.prompts) is not None:
            rows = slice(part.begin, part.end)
            self.prompts(query[rows], output[rows], cache.pool[layer], part, form)
        if (part := batch.singles) is not None:
            rows = slice(part.begin, part.end)
            self.singles(query[rows], output[rows], cache.pool[layer], part, form)
        return output

    def prompts(
        self, query: Tensor, output: Tensor, pool: Tensor, part: SliceGroup, form: AttentionForm
    ) -> None:
        """Computes the prompts of `part` over `pool` [pages, 2, page_size, kv_heads, head_dim] and
        writes `output`, which has the shape of `query`."""
        num_heads, head_dim = query.shape[1:]
        rows_per_block = 64 if query.dtype != torch.float32 else 32
        grid = (triton.cdiv(part.longest_slice, rows_per_block), num_heads, part.num_slices)
        _prompt_kernel[grid](
            query,
            output,
            pool,
            part.row_starts,
            part.page_tables,
            part.context_lengths,
            query.stride(0),
            output.stride(0),
            part.page_tables.stride(0),
            form.scale,
            form.softcap or 0.0,
            form.window or 0,
            GROUP=num_heads // pool.shape[3],
            KV_HEADS=pool.shape[3],
            HEAD_DIM=head_dim,
            DIM_BLOCK=triton.next_power_of_2(head_dim),
            PAGE_SIZE=pool.shape[2],
            ROWS=rows_per_block,
            KEYS=64 if query.dtype != torch.float32 else 32,
            HAS_SOFTCAP=form.softcap is not None,
            HAS_WINDOW=form.window is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            num_warps=4,
            num_stages=2,
        )

    def singles(
        self, query: Tensor, output: Tensor, pool: Tensor, part: SliceGroup, form: AttentionForm
    ) -> None:
        """Computes single tokens, with arguments as those of `prompts`."""
        self._singles.forward(query, output, pool, part, form)


@triton.jit
def _prompt_kernel(
    query,
    output,
    pool,
    row_starts,
    page_tables,
    context_lengths,
    query_stride,
    output_stride,
    table_stride,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(row_starts + sequence)
    num_rows = tl.load(row_starts + sequence + 1) - first_row
    if block * ROWS >= num_rows:
        return
    context = tl.load(context_lengths + sequence)
    rows = block * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    positions = context - num_rows + rows
    dims = tl.arange(0, DIM_BLOCK)
    is_dim = dims < HEAD_DIM
    offsets = (first_row + rows).to(tl.int64)[:, None]
    wanted = is_row[:, None] & is_dim[None, :]
    q = tl.load(
        query + offsets * query_stride + head * HEAD_DIM + dims[None, :], mask=wanted, other=0.0
    )
    greatest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS, DIM_BLOCK], tl.float32)
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(0, context - num_rows + block * ROWS - window + 1) // KEYS * KEYS
    end = tl.minimum(context, context - num_rows + (block + 1) * ROWS)
    table = page_tables + sequence * table_stride
    for start in range(begin, end, KEYS):
        tokens = start + tl.arange(0, KEYS)
        key, value = read_keys(
            pool, table, tokens, tokens < end, head // GROUP, dims, is_dim,
            KV_HEADS, HEAD_DIM, PAGE_SIZE,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(key), input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            scores = capped(scores, softcap)
        seen = (tokens[None, :] <= positions[:, None]) & (tokens[None, :] < end)
        if HAS_WINDOW:
            seen &= tokens[None, :] > positions[:, None] - window
        scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))  # log2(e): exp2 follows
        now = tl.maximum(greatest, tl.max(scores, 1))
        base = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(greatest - base)
        total = total * shrink + tl.sum(weights, 1)
        weighted = weighted * shrink[:, None]
        weighted = tl.dot(weights.to(value.dtype), value, weighted, input_precision=PRECISION)
        greatest = now
    result = weighted / total[:, None]
    at = output + offsets * output_stride + head * HEAD_DIM + dims[None, :]
    tl.store(at, result.to(output.dtype.element_ty), mask=wanted)

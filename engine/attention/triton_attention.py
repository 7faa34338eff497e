"""`TritonAttention` has paged attention kernels for CUDA that need no package but torch and triton.

For prompts, one program per block of query rows and head walks the keys that it sees with an online
softmax (FlashAttention-2, Dao 2023). For single tokens, the keys of one sequence are split over
several programs, so that even one sequence keeps the whole device busy, and a second kernel joins
their partial results (Flash-Decoding, Dao et al. 2023). The query heads that share a KV head are
computed by one program, which reads each key once for all of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.attention.backend import AttentionForm
from engine.batches.batch import Batch, SliceGroup
from engine.cache.kv_cache import KVCache

PROGRAMS_PER_PROCESSOR = 3
"""Programs for single tokens per multiprocessor: enough to hide latency, and few enough that
partial results cost little."""
MAX_SPLITS = 64


class TritonAttention:
    """Kernels are compiled when a shape is first used. They multiply float32 in full precision."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        self._num_processors = torch.cuda.get_device_properties(device).multi_processor_count

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
        """Computes single tokens, with arguments as those of `prompts`.

        The number of splits depends on the number of sequences alone, so that a CUDA graph of this
        call serves contexts of any length.
        """
        num, num_heads, head_dim = query.shape
        kv_heads = pool.shape[3]
        splits = self.num_splits(num * kv_heads)
        partial = query.new_empty(num, num_heads, splits, head_dim, dtype=torch.float32)
        log_sums = query.new_empty(num, num_heads, splits, dtype=torch.float32)
        group = num_heads // kv_heads
        dim_block = triton.next_power_of_2(head_dim)
        _single_kernel[(num, kv_heads, splits)](
            query,
            output,
            partial,
            log_sums,
            pool,
            part.page_tables,
            part.context_lengths,
            query.stride(0),
            output.stride(0),
            part.page_tables.stride(0),
            form.scale,
            form.softcap or 0.0,
            form.window or 0,
            splits,
            GROUP=group,
            GROUP_BLOCK=max(16, triton.next_power_of_2(group)),
            KV_HEADS=kv_heads,
            HEAD_DIM=head_dim,
            DIM_BLOCK=dim_block,
            PAGE_SIZE=pool.shape[2],
            KEYS=64 if query.dtype != torch.float32 else 32,
            IS_WHOLE=splits == 1,
            HAS_SOFTCAP=form.softcap is not None,
            HAS_WINDOW=form.window is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            num_warps=4,
            num_stages=3,
        )
        if splits > 1:
            _join_kernel[(num, num_heads)](
                partial,
                log_sums,
                output,
                output.stride(0),
                SPLITS=splits,
                HEAD_DIM=head_dim,
                DIM_BLOCK=dim_block,
                num_warps=4,
            )

    def num_splits(self, num_programs: int) -> int:
        """Returns over how many programs, a power of two, the keys of each sequence are split;
        `num_programs` (sequences times KV heads) are what there is without splits."""
        wanted = self._num_processors * PROGRAMS_PER_PROCESSOR / num_programs
        splits = 1
        while splits * 2 <= min(wanted, MAX_SPLITS):
            splits *= 2
        return splits


@triton.jit
def _read_keys(
    pool,
    table,
    tokens,
    is_key,
    kv_head,
    dims,
    is_dim,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):
    """Loads K and V [tokens, dims] of one sequence from its pages; they are 0 where not
    `is_key`."""
    pages = tl.load(table + tokens // PAGE_SIZE, mask=is_key, other=0).to(tl.int64)
    rows = pages * (2 * PAGE_SIZE) + tokens % PAGE_SIZE
    at = pool + (rows * KV_HEADS + kv_head)[:, None] * HEAD_DIM + dims[None, :]
    wanted = is_key[:, None] & is_dim[None, :]
    key = tl.load(at, mask=wanted, other=0.0)
    value = tl.load(at + PAGE_SIZE * KV_HEADS * HEAD_DIM, mask=wanted, other=0.0)
    return key, value


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
        key, value = _read_keys(
            pool, table, tokens, tokens < end, head // GROUP, dims, is_dim,
            KV_HEADS, HEAD_DIM, PAGE_SIZE,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(key), input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            scores = softcap * (1 - 2 / (1 + tl.exp(2 * scores / softcap)))
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


@triton.jit
def _single_kernel(
    query,
    output,
    partial,
    log_sums,
    pool,
    page_tables,
    context_lengths,
    query_stride,
    output_stride,
    table_stride,
    scale,
    softcap,
    window,
    splits,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(context_lengths + sequence)
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(0, context - window)
    base_block = first // KEYS
    num_blocks = tl.cdiv(context, KEYS) - base_block
    blocks_each = tl.cdiv(num_blocks, splits)
    begin = (base_block + split * blocks_each) * KEYS
    end = tl.minimum(context, begin + blocks_each * KEYS)
    group = tl.arange(0, GROUP_BLOCK)
    dims = tl.arange(0, DIM_BLOCK)
    is_dim = dims < HEAD_DIM
    heads = kv_head * GROUP + group
    wanted = (group < GROUP)[:, None] & is_dim[None, :]
    at = sequence.to(tl.int64) * query_stride + heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(query + at, mask=wanted, other=0.0)
    greatest = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    weighted = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
    table = page_tables + sequence * table_stride
    for start in range(begin, end, KEYS):
        tokens = start + tl.arange(0, KEYS)
        key, value = _read_keys(
            pool, table, tokens, tokens < end, kv_head, dims, is_dim,
            KV_HEADS, HEAD_DIM, PAGE_SIZE,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(key), input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            scores = softcap * (1 - 2 / (1 + tl.exp(2 * scores / softcap)))
        seen = (tokens < end) & (tokens >= first)
        # log2(e): exp2 follows
        scores = tl.where(seen[None, :], scores * 1.4426950408889634, float("-inf"))
        now = tl.maximum(greatest, tl.max(scores, 1))
        base = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(greatest - base)
        total = total * shrink + tl.sum(weights, 1)
        weighted = weighted * shrink[:, None]
        weighted = tl.dot(weights.to(value.dtype), value, weighted, input_precision=PRECISION)
        greatest = now
    if IS_WHOLE:
        result = weighted / total[:, None]
        at = sequence.to(tl.int64) * output_stride + heads[:, None] * HEAD_DIM + dims[None, :]
        tl.store(output + at, result.to(output.dtype.element_ty), mask=wanted)
    else:
        # An empty split has total 0 and greatest -inf: its weight in the join is 0.
        result = weighted / tl.where(total > 0, total, 1.0)[:, None]
        place = (sequence * KV_HEADS * GROUP + heads).to(tl.int64) * splits + split
        tl.store(partial + place[:, None] * HEAD_DIM + dims[None, :], result, mask=wanted)
        log_sum = tl.where(total > 0, greatest + tl.log2(total), float("-inf"))
        tl.store(log_sums + place, log_sum, mask=group < GROUP)


@triton.jit
def _join_kernel(
    partial,
    log_sums,
    output,
    output_stride,
    SPLITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, DIM_BLOCK)
    is_dim = dims < HEAD_DIM
    place = (sequence * tl.num_programs(1) + head).to(tl.int64) * SPLITS + splits
    log_sum = tl.load(log_sums + place)
    weights = tl.exp2(log_sum - tl.max(log_sum, 0))
    parts = tl.load(
        partial + place[:, None] * HEAD_DIM + dims[None, :], mask=is_dim[None, :], other=0.0
    )
    result = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    at = output + sequence.to(tl.int64) * output_stride + head * HEAD_DIM + dims
    tl.store(at, result.to(output.dtype.element_ty), mask=is_dim)

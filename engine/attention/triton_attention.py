"""`TritonAttention` has paged attention kernels for CUDA that need no package but torch and triton.

For prompts, one program per block of query rows and head walks the keys that it sees with an online
softmax (FlashAttention-2, Dao 2023). Single tokens are computed by `TritonSingles`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.attention.backend import AttentionForm
from engine.attention.triton_singles import SinglesTuning, TritonSingles, capped
from engine.batches.batch import Batch, SliceGroup
from engine.cache.kv_cache import KVCache
from engine.cache.triton_pages import (
    kernel_pages,
    read_keys,
    score_scale,
    unlifted,
    weighed,
)
from engine.dependent_launch import launches_dependently


@dataclass(frozen=True)
class PromptTuning:
    """The shape of a program that computes prompts. It changes no result but its rounding."""

    rows: int = 64
    keys: int = 64
    num_warps: int = 4
    num_stages: int = 2


FOR_FLOAT32 = PromptTuning(rows=32, keys=32)


class TritonAttention:
    """Kernels are compiled when a shape is first used. They multiply float32 in full precision."""

    name = "triton"

    def __init__(
        self,
        num_processors: int,
        singles: SinglesTuning | None = None,
        prompts: PromptTuning | None = None,
    ) -> None:
        """`num_processors` is how many multiprocessors the device has. `prompts` is for half
        precision."""
        self._singles = TritonSingles(num_processors, singles or SinglesTuning())
        self._prompts = prompts or PromptTuning()

    @classmethod
    def on(cls, device: torch.device) -> TritonAttention:
        """Returns the back end for one CUDA device."""
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        return cls(processors, SinglesTuning(is_dependent=launches_dependently(device)))

    def forward(
        self, query: Tensor, layer: int, cache: KVCache, batch: Batch, form: AttentionForm
    ) -> Tensor:
        output = torch.empty_like(query)
        if (part := batch.prompts) is not None:
            rows = slice(part.begin, part.end)
            self.prompts(query[rows], output[rows], layer, cache, part, form)
        if (part := batch.singles) is not None:
            rows = slice(part.begin, part.end)
            self.singles(query[rows], output[rows], layer, cache, part, form)
        return output

    def prompts(
        self,
        query: Tensor,
        output: Tensor,
        layer: int,
        cache: KVCache,
        part: SliceGroup,
        form: AttentionForm,
    ) -> None:
        """Computes the prompts of `part` over a layer of `cache` and writes `output`, which has the
        shape of `query`."""
        pages = kernel_pages(cache, layer)
        num_heads, head_dim = query.shape[1:]
        tuning = self._prompts if query.dtype != torch.float32 else FOR_FLOAT32
        grid = (triton.cdiv(part.longest_slice, tuning.rows), num_heads, part.num_slices)
        _prompt_kernel[grid](
            query,
            output,
            pages.values,
            pages.scales,
            part.row_starts,
            part.page_tables,
            part.context_lengths,
            query.stride(0),
            output.stride(0),
            part.page_tables.stride(0),
            form.scale,
            form.softcap or 0.0,
            form.window or 0,
            GROUP=num_heads // pages.constants["KV_HEADS"],
            DIM_BLOCK=triton.next_power_of_2(head_dim),
            ROWS=tuning.rows,
            KEYS=tuning.keys,
            HAS_SOFTCAP=form.softcap is not None,
            HAS_WINDOW=form.window is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            num_warps=tuning.num_warps,
            num_stages=tuning.num_stages,
            **pages.constants,
        )

    def singles(
        self,
        query: Tensor,
        output: Tensor,
        layer: int,
        cache: KVCache,
        part: SliceGroup,
        form: AttentionForm,
    ) -> None:
        """Computes single tokens, with arguments as those of `prompts`."""
        self._singles.forward(query, output, kernel_pages(cache, layer), part, form)


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["row_starts", "page_tables", "context_lengths"],
)
def _prompt_kernel(
    query,
    output,
    values,
    scales,
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
    PAGE_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_FP8: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The last rows see the most keys: they come first, so that none of them is begun last.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head, sequence = tl.program_id(1), tl.program_id(2)
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
    first_position = context - num_rows + block * ROWS
    end = tl.minimum(context, first_position + ROWS)
    table = page_tables + sequence * table_stride
    scale = score_scale(scale, scales, head // GROUP, SCALES)
    # Keys [begin, common) are seen by all rows; of [common, end) each row sees its own.
    begin = 0
    common = (first_position + 1) // KEYS * KEYS
    if HAS_WINDOW:
        begin = tl.maximum(0, first_position - window + 1) // KEYS * KEYS
        common = begin
    for start in range(begin, common, KEYS):
        greatest, total, weighted = _with_keys(
            q, greatest, total, weighted, values, scales, table, start, end, positions,
            head // GROUP, dims, is_dim, scale, softcap, window, KV_HEADS, HEAD_DIM, PAGE_SIZE,
            PAGE_STRIDE, SCALES, HAS_FP8, KEYS, HAS_SOFTCAP, HAS_WINDOW, False, PRECISION,
        )  # fmt: skip
    for start in range(common, end, KEYS):
        greatest, total, weighted = _with_keys(
            q, greatest, total, weighted, values, scales, table, start, end, positions,
            head // GROUP, dims, is_dim, scale, softcap, window, KV_HEADS, HEAD_DIM, PAGE_SIZE,
            PAGE_STRIDE, SCALES, HAS_FP8, KEYS, HAS_SOFTCAP, HAS_WINDOW, True, PRECISION,
        )  # fmt: skip
    result = unlifted(weighted / total[:, None], scales, head // GROUP, KV_HEADS, SCALES)
    at = output + offsets * output_stride + head * HEAD_DIM + dims[None, :]
    tl.store(at, result.to(output.dtype.element_ty), mask=wanted)


@triton.jit
def _with_keys(
    q,
    greatest,
    total,
    weighted,
    values,
    scales,
    table,
    start,
    end,
    positions,
    kv_head,
    dims,
    is_dim,
    scale,
    softcap,
    window,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_FP8: tl.constexpr,
    KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns the sums of an online softmax with one more block of keys. Not `IS_MASKED`: every row
    sees all of them."""
    tokens = start + tl.arange(0, KEYS)
    key, value, key_scales, value_scales = read_keys(
        values, scales, table, tokens, tokens < end, kv_head, dims, is_dim, q.dtype,
        KV_HEADS, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE, SCALES, HAS_FP8,
    )  # fmt: skip
    # Scores are times log2(e), because exp2 follows.
    scores = tl.dot(q, tl.trans(key), input_precision=PRECISION)
    if SCALES == "token":
        scores = scores * key_scales[None, :]
    if HAS_SOFTCAP:
        scores = capped(scores * scale, softcap) * 1.4426950408889634
    else:
        scores = scores * (scale * 1.4426950408889634)
    if IS_MASKED:
        seen = (tokens[None, :] <= positions[:, None]) & (tokens[None, :] < end)
        if HAS_WINDOW:
            seen &= tokens[None, :] > positions[:, None] - window
        scores = tl.where(seen, scores, float("-inf"))
    now = tl.maximum(greatest, tl.max(scores, 1))
    base = tl.where(now == float("-inf"), 0.0, now)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(greatest - base)
    total = total * shrink + tl.sum(weights, 1)
    weighted = weighted * shrink[:, None]
    weights = weighed(weights, value_scales, SCALES).to(value.dtype)
    weighted = tl.dot(weights, value, weighted, input_precision=PRECISION)
    return now, total, weighted

"""`TritonSingles` computes single tokens over paged KV on CUDA, as a decode step needs it.

The keys of all sequences are cut into pieces of like length (`engine/attention/token_pieces.py`):
one kernel makes that plan for a step from the lengths on the device, and each layer computes the
pieces. The program that ends the last piece of a sequence joins all of them, in the order of their
keys, so that the result does not depend on which one that is. The query heads that share a KV head
are computed by one program, which reads each key once for all of them, and joined at once: with one
short sequence, a piece is mostly a chain of reads that wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from engine.attention.backend import AttentionForm
from engine.attention.token_pieces import FEW_PIECES, LEAST_BLOCKS, SLACK, most_pieces
from engine.batches.batch import SliceGroup
from engine.cache.triton_pages import KernelPages, read_keys, score_scale, unlifted, weighed
from engine.dependent_launch import OPTION

PLAN_TILE = 64
JOIN_TILE = 16
"""The most pieces that are joined at once."""
MOST_JOINED = 8192
"""The most numbers that a program joins at once; a thread holds 64 of them."""
MOST_LIMITED = 16 * 128
"""The most numbers of queries in a program whose registers are limited."""
FIELDS = tl.constexpr(8)
"""The numbers of a piece in a plan: its sequence, the first of its keys and the first after them,
the first key that the sequence's token sees, the number of the sequence's first piece, and how many
pieces the sequence has. Two are free, so that a piece fills a sector of the memory."""


@dataclass(frozen=True)
class SinglesTuning:
    """What makes the kernels fast, and changes no result but its rounding."""

    programs_per_processor: int = 4
    """How many pieces a multiprocessor is meant to have at once."""
    num_stages: int = 3
    """How far ahead a program reads. The look into the page table takes two stages of it."""
    most_registers: int = 128
    """Of a thread, so that a multiprocessor has room for as many programs. Joining would take more,
    and by that slow down the reading, as the compiler counts for both what the greedier one needs.
    Programs with larger tiles than MOST_LIMITED have no such limit, as they would have to spill."""
    is_dependent: bool = False
    """Kernels are launched as `engine/dependent_launch.py` says."""


@dataclass(frozen=True)
class DevicePlan:
    """The pieces of one step for one window, on the device; all int32."""

    num_pieces: Tensor
    """[1]: the number of pieces."""
    pieces: Tensor
    """[most pieces, FIELDS]. Beyond the number of pieces it is not filled."""
    arrivals: Tensor
    """[sequences * KV heads]: how many pieces of a sequence have ended; 0 between layers."""


class TritonSingles:
    """Every length is read on the device alone, so a CUDA graph of these calls serves contexts of
    any length. A step's first layer with a window makes the plan for it, which the step's other
    layers with that window use."""

    def __init__(self, num_processors: int, tuning: SinglesTuning) -> None:
        """`num_processors` is how many multiprocessors the device has."""
        self._num_programs = num_processors * tuning.programs_per_processor
        self._launch: dict[str, Any] = {"IS_DEPENDENT": tuning.is_dependent}
        if tuning.is_dependent:
            self._launch[OPTION] = True
        self._tuning = tuning
        self._part: SliceGroup | None = None
        self._plans: dict[int | None, DevicePlan] = {}

    def forward(
        self,
        query: Tensor,
        output: Tensor,
        pages: KernelPages,
        part: SliceGroup,
        form: AttentionForm,
    ) -> None:
        """Computes the single tokens of `part` over `pages` and writes `output`, which has the
        shape of `query` [tokens, heads, head_dim]."""
        num, num_heads, head_dim = query.shape
        kv_heads = pages.constants["KV_HEADS"]
        workers = max(1, self._num_programs // kv_heads)
        keys = keys_of_block(query.dtype)
        if part is not self._part:
            self._part, self._plans = part, {}
        is_planned = form.window in self._plans
        if not is_planned:
            self._plans[form.window] = plan_pieces(part, kv_heads, form.window, keys, workers)
        plan = self._plans[form.window]
        num_pieces = most_pieces(num, workers)
        partial = query.new_empty(num_pieces, num_heads, head_dim, dtype=torch.float32)
        log_sums = query.new_empty(num_pieces, num_heads, dtype=torch.float32)
        group = num_heads // kv_heads
        group_block = max(16, triton.next_power_of_2(group))
        dim_block = triton.next_power_of_2(head_dim)
        is_limited = group_block * dim_block <= MOST_LIMITED
        members = min(triton.next_power_of_2(group), max(1, MOST_JOINED // dim_block))
        # KV heads first: those of one token are neighbours in memory.
        _piece_kernel[(kv_heads, num_pieces)](
            query,
            output,
            partial,
            log_sums,
            pages.values,
            pages.scales,
            part.page_tables,
            plan.num_pieces,
            plan.pieces,
            plan.arrivals,
            query.stride(0),
            output.stride(0),
            part.page_tables.stride(0),
            form.scale,
            form.softcap or 0.0,
            int(is_planned),
            GROUP=group,
            GROUP_BLOCK=group_block,
            DIM_BLOCK=dim_block,
            KEYS=keys,
            MEMBERS=members,
            JOIN=min(JOIN_TILE, MOST_JOINED // (members * dim_block)),
            HAS_SOFTCAP=form.softcap is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            num_warps=4,
            num_stages=self._tuning.num_stages,
            maxnreg=self._tuning.most_registers if is_limited else None,
            **pages.constants,
            **self._launch,
        )


def keys_of_block(dtype: torch.dtype) -> int:
    """Returns how many keys a program reads at once."""
    return 64 if dtype != torch.float32 else 32


def plan_pieces(
    part: SliceGroup, kv_heads: int, window: int | None, keys: int, workers: int
) -> DevicePlan:
    """Makes the plan of a step on the device, as `token_pieces` would with blocks of `keys` keys;
    it does not wait for the device."""
    num, contexts = part.num_slices, part.context_lengths
    plan = DevicePlan(
        num_pieces=contexts.new_empty(1),
        pieces=contexts.new_empty(most_pieces(num, workers), FIELDS.value),
        arrivals=contexts.new_empty(num * kv_heads),
    )
    _plan_kernel[(triton.cdiv(num, PLAN_TILE),)](
        contexts,
        plan.num_pieces,
        plan.pieces,
        plan.arrivals,
        num,
        window or 0,
        workers,
        KV_HEADS=kv_heads,
        HEADS_BLOCK=triton.next_power_of_2(kv_heads),
        KEYS=keys,
        TILE=PLAN_TILE,
        HAS_WINDOW=window is not None,
        SLACK_OVER=SLACK[0],
        SLACK_UNDER=SLACK[1],
        LEAST=LEAST_BLOCKS,
        FEW=FEW_PIECES,
        num_warps=4,
    )
    return plan


@triton.jit
def capped(scores, softcap):
    """Returns softcap * tanh(scores / softcap)."""
    return softcap * (1 - 2 / (1 + tl.exp(2 * scores / softcap)))


@triton.jit
def _num_blocks(context, window, KEYS: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Returns how many blocks of keys a token sees in a context; 0 of a context of 0."""
    first_block = context * 0
    if HAS_WINDOW:
        first_block = tl.maximum(0, context - window) // KEYS
    return (context + KEYS - 1) // KEYS - first_block


# Neither the sizes of a step nor where its arrays lie in their upload make another variant: that
# would be compiled while the node serves.
@triton.jit(
    do_not_specialize=["num", "window", "workers"], do_not_specialize_on_alignment=["contexts"]
)
def _plan_kernel(
    contexts,
    piece_count,
    pieces,
    arrivals,
    num,
    window,
    workers,
    KV_HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    SLACK_OVER: tl.constexpr,
    SLACK_UNDER: tl.constexpr,
    LEAST: tl.constexpr,
    FEW: tl.constexpr,
):
    """Each program plans some of the sequences. For that it looks at the lengths of all, so that no
    program waits for another."""
    total = 0
    for begin in range(0, num, TILE):
        others = begin + tl.arange(0, TILE)
        context = tl.load(contexts + others, mask=others < num, other=0)
        total += tl.sum(_num_blocks(context, window, KEYS, HAS_WINDOW), 0)
    share = tl.cdiv(total * SLACK_OVER, workers * SLACK_UNDER)
    share = tl.maximum(share, tl.minimum(LEAST, tl.cdiv(total, FEW)))
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_row = rows < num
    lengths = tl.load(contexts + rows, mask=is_row, other=0)
    own = _num_blocks(lengths, window, KEYS, HAS_WINDOW)
    counts = (own + share - 1) // share
    starts = tl.zeros([TILE], tl.int32)
    num_pieces = 0
    for begin in range(0, num, TILE):
        others = begin + tl.arange(0, TILE)
        context = tl.load(contexts + others, mask=others < num, other=0)
        blocks = _num_blocks(context, window, KEYS, HAS_WINDOW)
        their_counts = (blocks + share - 1) // share
        num_pieces += tl.sum(their_counts, 0)
        comes_before = (blocks[None, :] > own[:, None]) | (
            (blocks[None, :] == own[:, None]) & (others[None, :] < rows[:, None])
        )
        starts += tl.sum(tl.where(comes_before, their_counts[None, :], 0), 1)
    firsts = tl.zeros([TILE], tl.int32)
    if HAS_WINDOW:
        firsts = tl.maximum(0, lengths - window)
    for index in range(0, tl.max(counts, 0)):
        at = pieces + (starts + index) * FIELDS
        has_piece = is_row & (index < counts)
        begins = (firsts // KEYS + index * own // counts) * KEYS
        ends = (firsts // KEYS + (index + 1) * own // counts) * KEYS
        tl.store(at, rows, mask=has_piece)
        tl.store(at + 1, begins, mask=has_piece)
        tl.store(at + 2, tl.minimum(lengths, ends), mask=has_piece)
        tl.store(at + 3, firsts, mask=has_piece)
        tl.store(at + 4, starts, mask=has_piece)
        tl.store(at + 5, counts, mask=has_piece)
    heads = tl.arange(0, HEADS_BLOCK)
    at = arrivals + rows[:, None] * KV_HEADS + heads[None, :]
    none = tl.zeros([TILE, HEADS_BLOCK], tl.int32)
    tl.store(at, none, mask=is_row[:, None] & (heads < KV_HEADS)[None, :])
    if tl.program_id(0) == 0:
        tl.store(piece_count, num_pieces)


@triton.jit(
    do_not_specialize=["table_stride", "is_planned"],
    do_not_specialize_on_alignment=["page_tables"],
)
def _piece_kernel(
    query,
    output,
    partial,
    log_sums,
    values,
    scales,
    page_tables,
    piece_count,
    pieces,
    arrivals,
    query_stride,
    output_stride,
    table_stride,
    scale,
    softcap,
    is_planned,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
    HAS_FP8: tl.constexpr,
    KEYS: tl.constexpr,
    MEMBERS: tl.constexpr,
    JOIN: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_DEPENDENT: tl.constexpr,
):
    if IS_DEPENDENT:
        gdc_launch_dependents()
        # The kernel that plans lets nobody in before it has ended, so all but the first that uses
        # its plan can read it while the kernel before them runs.
        if is_planned == 0:
            gdc_wait()
    kv_head, piece = tl.program_id(0), tl.program_id(1)
    num_all = tl.load(piece_count)
    record = pieces + piece * FIELDS
    sequence = tl.load(record)
    begin = tl.load(record + 1)
    end = tl.load(record + 2)
    first = tl.load(record + 3)
    first_piece = tl.load(record + 4)
    num_pieces = tl.load(record + 5)
    if IS_DEPENDENT:
        gdc_wait()
    if piece >= num_all:
        return
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
    table = page_tables + sequence.to(tl.int64) * table_stride
    scale = score_scale(scale, scales, kv_head, SCALES)
    for start in range(begin, end, KEYS):
        tokens = start + tl.arange(0, KEYS)
        key, value, key_scales, value_scales = read_keys(
            values, scales, table, tokens, tokens < end, kv_head, dims, is_dim, q.dtype,
            KV_HEADS, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE, SCALES, HAS_FP8,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(key), input_precision=PRECISION) * scale
        if SCALES == "token":
            scores = scores * key_scales[None, :]
        if HAS_SOFTCAP:
            scores = capped(scores, softcap)
        seen = (tokens < end) & (tokens >= first)
        # log2(e): exp2 follows
        scores = tl.where(seen[None, :], scores * 1.4426950408889634, float("-inf"))
        now = tl.maximum(greatest, tl.max(scores, 1))
        base = tl.where(now == float("-inf"), 0.0, now)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(greatest - base)
        total = total * shrink + tl.sum(weights, 1)
        weighted = weighted * shrink[:, None]
        weights = weighed(weights, value_scales, SCALES).to(value.dtype)
        weighted = tl.dot(weights, value, weighted, input_precision=PRECISION)
        greatest = now
    result = unlifted(weighted / total[:, None], scales, kv_head, KV_HEADS, SCALES)
    if num_pieces == 1:
        at = sequence.to(tl.int64) * output_stride + heads[:, None] * HEAD_DIM + dims[None, :]
        tl.store(output + at, result.to(output.dtype.element_ty), mask=wanted)
    else:
        place = piece * (KV_HEADS * GROUP) + heads
        tl.store(partial + place[:, None] * HEAD_DIM + dims[None, :], result, mask=wanted)
        tl.store(log_sums + place, greatest + tl.log2(total), mask=group < GROUP)
        # All threads of this program have stored before the one that counts says so.
        tl.debug_barrier()
        arrival = arrivals + sequence * KV_HEADS + kv_head
        if tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu") == num_pieces - 1:
            for start in range(0, GROUP, MEMBERS):
                members = start + tl.arange(0, MEMBERS)
                is_member = (members < GROUP)[:, None] & is_dim[None, :]
                joined = _joined(
                    partial, log_sums, first_piece, num_pieces, kv_head * GROUP + members, dims,
                    is_member, KV_HEADS * GROUP, HEAD_DIM, DIM_BLOCK, MEMBERS, JOIN,
                )  # fmt: skip
                row = sequence.to(tl.int64) * output_stride
                to = output + row + (kv_head * GROUP + members)[:, None] * HEAD_DIM + dims[None, :]
                tl.store(to, joined.to(output.dtype.element_ty), mask=is_member)
            tl.store(arrival, 0)


@triton.jit
def _joined(
    partial,
    log_sums,
    first_piece,
    num_pieces,
    heads,
    dims,
    wanted,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    MEMBERS: tl.constexpr,
    JOIN: tl.constexpr,
):
    """Returns what the pieces of one sequence amount to for `heads`, [heads, dims], where `wanted`.
    Other programs have written some of them, so nothing may come from this multiprocessor's own
    cache (`.cg`)."""
    greatest = tl.full([MEMBERS], float("-inf"), tl.float32)
    total = tl.zeros([MEMBERS], tl.float32)
    weighted = tl.zeros([MEMBERS, DIM_BLOCK], tl.float32)
    is_head = heads < HEADS
    for begin in range(0, num_pieces, JOIN):
        pieces = begin + tl.arange(0, JOIN)
        is_piece = pieces < num_pieces
        place = (first_piece + pieces)[:, None] * HEADS + heads[None, :]
        log_sum = tl.load(
            log_sums + place,
            mask=is_piece[:, None] & is_head[None, :],
            other=float("-inf"),
            cache_modifier=".cg",
        )
        values = tl.load(
            partial + place[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=is_piece[:, None, None] & wanted[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        now = tl.maximum(greatest, tl.max(log_sum, 0))
        base = tl.where(is_head, now, 0.0)
        weights = tl.exp2(log_sum - base[None, :])
        shrink = tl.exp2(greatest - base)
        total = total * shrink + tl.sum(weights, 0)
        weighted = weighted * shrink[:, None] + tl.sum(values * weights[:, :, None], 0)
        greatest = now
    return weighted / total[:, None]

"""`Batch`: the tensors of one step, built from slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from engine.kv_cache import slots_of
from engine.request import Slice
from protocol.sampling import Sampling


@dataclass(frozen=True)
class PromptPart:
    """A slice of more than one token: rows [begin, end) of the batch."""

    begin: int
    end: int
    start: int
    """Tokens of the sequence before the slice."""
    pages: Tensor
    """[pages of the context] int64."""
    page_size: int

    @property
    def context_length(self) -> int:
        return self.start + self.end - self.begin

    @cached_property
    def slots(self) -> Tensor:
        """[context length] int64: where the pool holds the context. Computed once per step."""
        return _slots(self.pages, self.page_size)[: self.context_length]


@dataclass(frozen=True)
class SingleTokens:
    """All slices of one token together: rows of the batch, with padded page tables.

    Padding is page 0; `context_lengths` says where it begins.
    """

    rows: Tensor
    """[n] int64."""
    page_tables: Tensor
    """[n, most pages] int64."""
    context_lengths: Tensor
    """[n] int64, the new token included."""
    longest: int
    """The greatest of `context_lengths`, known here without asking the device."""
    page_size: int

    @cached_property
    def slots(self) -> Tensor:
        """[n, longest] int64: where the pool holds each context. Computed once per step.

        Beyond a context's end a row repeats the context's first token rather than name a slot
        of somebody else: whatever lies there, even a NaN, cannot reach this sequence.
        """
        slots = _slots(self.page_tables, self.page_size)[:, : self.longest]
        tokens = torch.arange(self.longest, device=slots.device)
        return torch.where(tokens < self.context_lengths[:, None], slots, slots[:, :1])


@dataclass(frozen=True)
class Batch:
    """One step over [tokens] rows, slice after slice."""

    input_ids: Tensor
    positions: Tensor
    write_slots: Tensor
    """Where the pool takes each row's K and V."""
    prompts: list[PromptPart]
    singles: SingleTokens | None
    sample_rows: Tensor
    """Rows whose logits are wanted, one per slice with `sampling`."""
    samplings: list[Sampling]
    sample_positions: list[int]
    """Position that the sampled token will have in its sequence."""

    @classmethod
    def build(cls, slices: Sequence[Slice], page_size: int, device: torch.device) -> Batch:
        """`slices` is not empty, nor is any slice."""
        lengths = np.array([len(s.token_ids) for s in slices])
        assert len(slices) > 0 and lengths.all(), "a step computes at least one token per slice"
        starts = np.array([s.start for s in slices])
        ends = lengths.cumsum()
        begins = ends - lengths
        num_pages = -(-(starts + lengths) // page_size)
        tables = np.zeros((len(slices), num_pages.max()), dtype=np.int64)
        for table, one, count in zip(tables, slices, num_pages, strict=True):
            table[:count] = one.pages[:count]
        owner = np.repeat(np.arange(len(slices)), lengths)
        positions = np.arange(ends[-1]) - begins[owner] + starts[owner]
        write_pages = tables[owner, positions // page_size]

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

        single = np.flatnonzero(lengths == 1)
        sampled = [i for i, s in enumerate(slices) if s.sampling is not None]
        return cls(
            input_ids=tensor(np.concatenate([np.asarray(s.token_ids) for s in slices])),
            positions=tensor(positions),
            write_slots=tensor(slots_of(write_pages, positions % page_size, page_size)),
            prompts=[
                PromptPart(
                    begin=int(begins[i]),
                    end=int(ends[i]),
                    start=int(starts[i]),
                    pages=tensor(tables[i, : num_pages[i]]),
                    page_size=page_size,
                )
                for i in np.flatnonzero(lengths > 1)
            ],
            singles=SingleTokens(
                rows=tensor(begins[single]),
                page_tables=tensor(tables[single, : num_pages[single].max()]),
                context_lengths=tensor(starts[single] + 1),
                longest=int(starts[single].max()) + 1,
                page_size=page_size,
            )
            if len(single)
            else None,
            sample_rows=tensor(ends[sampled] - 1),
            samplings=[s.sampling for s in slices if s.sampling is not None],
            sample_positions=[int(starts[i] + lengths[i]) for i in sampled],
        )


def _slots(pages: Tensor, page_size: int) -> Tensor:
    """[..., pages] → [..., pages * page_size]: the slots of all tokens of `pages`."""
    offsets = torch.arange(page_size, device=pages.device)
    return slots_of(pages[..., None], offsets, page_size).flatten(-2)

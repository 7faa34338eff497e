"""`Batch`: the tensors of one step, built from slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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

    @property
    def context_length(self) -> int:
        return self.start + self.end - self.begin


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


@dataclass(frozen=True)
class Batch:
    """One step over [tokens] rows, slice after slice."""

    input_ids: Tensor
    positions: Tensor
    write_pages: Tensor
    """Page of each row's K and V."""
    write_offsets: Tensor
    """Token slot within that page."""
    prompts: list[PromptPart]
    singles: SingleTokens | None
    sample_rows: Tensor
    """Rows whose logits are wanted, one per slice with `sampling`."""
    samplings: list[Sampling]
    sample_positions: list[int]
    """Position that the sampled token will have in its sequence."""

    @classmethod
    def build(cls, slices: Sequence[Slice], page_size: int, device: torch.device) -> Batch:
        lengths = np.array([len(s.token_ids) for s in slices])
        starts = np.array([s.start for s in slices])
        ends = lengths.cumsum()
        begins = ends - lengths
        num_pages = [-(-(s.start + len(s.token_ids)) // page_size) for s in slices]
        tables = np.zeros((len(slices), max(num_pages)), dtype=np.int64)
        for table, one, count in zip(tables, slices, num_pages, strict=True):
            table[:count] = one.pages[:count]
        owner = np.repeat(np.arange(len(slices)), lengths)
        positions = np.arange(ends[-1]) - begins[owner] + starts[owner]

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        single = np.flatnonzero(lengths == 1)
        sampled = [i for i, s in enumerate(slices) if s.sampling is not None]
        return cls(
            input_ids=tensor(np.concatenate([np.asarray(s.token_ids) for s in slices])),
            positions=tensor(positions),
            write_pages=tensor(tables[owner, positions // page_size]),
            write_offsets=tensor(positions % page_size),
            prompts=[
                PromptPart(
                    int(begins[i]), int(ends[i]), int(starts[i]), tensor(tables[i, : num_pages[i]])
                )
                for i in np.flatnonzero(lengths > 1)
            ],
            singles=SingleTokens(
                rows=tensor(begins[single]),
                page_tables=tensor(tables[single, : max(num_pages[i] for i in single)]),
                context_lengths=tensor(starts[single] + 1),
            )
            if len(single)
            else None,
            sample_rows=tensor(ends[sampled] - 1),
            samplings=[s.sampling for s in slices if s.sampling is not None],
            sample_positions=[int(starts[i] + lengths[i]) for i in sampled],
        )

"""`Batch`: the tensors of one step, built from slices.

Rows are grouped by how attention handles them: prompts (slices of several tokens) first, then
singles (slices of one token), each kind in the order of the slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.kv_cache import slots_of
from engine.request import Slice
from protocol.sampling import Sampling


@dataclass(frozen=True)
class Part:
    """The slices of one kind: rows [begin, end) of the batch, slice after slice.

    What is named `_host` is the same as numpy arrays, for plans made without asking the device.
    """

    begin: int
    end: int
    row_starts: Tensor
    """[slices + 1] int32: where each slice begins, counted from `begin`."""
    page_tables: Tensor
    """[slices, most pages] int32; padded with page 0."""
    context_lengths: Tensor
    """[slices] int32: tokens of each sequence up to the end of its slice."""
    row_starts_host: np.ndarray
    context_lengths_host: np.ndarray
    longest_slice: int
    longest_context: int

    @property
    def num_slices(self) -> int:
        return len(self.context_lengths_host)


@dataclass(frozen=True)
class Batch:
    """One step over [tokens] rows."""

    input_ids: Tensor
    """[tokens] int64, as positions and write_slots."""
    positions: Tensor
    write_slots: Tensor
    """Where the pool takes each row's K and V."""
    prompts: Part | None
    singles: Part | None
    sample_rows: Tensor
    """Rows whose logits are wanted, one per slice with `sampling`, in the order of the slices."""
    samplings: list[Sampling]
    sample_positions: list[int]
    """Position that the sampled token will have in its sequence."""

    @classmethod
    def build(cls, slices: Sequence[Slice], page_size: int, device: torch.device) -> Batch:
        """`slices` is not empty, nor is any slice."""
        lengths = np.array([len(s.token_ids) for s in slices])
        assert len(slices) > 0 and lengths.all(), "a step computes at least one token per slice"
        order = np.argsort(lengths == 1, kind="stable")  # slices in the order of their rows
        num_prompts = int((lengths > 1).sum())
        ordered = [slices[i] for i in order]
        lengths = lengths[order]
        starts = np.array([s.start for s in ordered])
        contexts = starts + lengths
        ends = lengths.cumsum()
        begins = ends - lengths
        num_pages = -(-contexts // page_size)
        tables = np.zeros((len(ordered), num_pages.max()), dtype=np.int64)
        tables[np.arange(tables.shape[1]) < num_pages[:, None]] = np.concatenate(
            [s.pages[:count] for s, count in zip(ordered, num_pages, strict=True)]
        )
        owner = np.repeat(np.arange(len(ordered)), lengths)
        positions = np.arange(ends[-1]) - begins[owner] + starts[owner]
        write_pages = tables[owner, positions // page_size]

        def tensor(array: np.ndarray, dtype: type = np.int64) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype)).to(device)

        def part(first: int, stop: int) -> Part | None:
            if first == stop:
                return None
            row_starts = np.append(begins[first:stop], ends[stop - 1]) - begins[first]
            return Part(
                begin=int(begins[first]),
                end=int(ends[stop - 1]),
                row_starts=tensor(row_starts, np.int32),
                page_tables=tensor(tables[first:stop, : num_pages[first:stop].max()], np.int32),
                context_lengths=tensor(contexts[first:stop], np.int32),
                row_starts_host=row_starts,
                context_lengths_host=contexts[first:stop],
                longest_slice=int(lengths[first:stop].max()),
                longest_context=int(contexts[first:stop].max()),
            )

        place = np.argsort(order)  # of each slice among the ordered ones
        sampled = [i for i, s in enumerate(slices) if s.sampling is not None]
        return cls(
            input_ids=tensor(np.concatenate([np.asarray(s.token_ids) for s in ordered])),
            positions=tensor(positions),
            write_slots=tensor(slots_of(write_pages, positions % page_size, page_size)),
            prompts=part(0, num_prompts),
            singles=part(num_prompts, len(ordered)),
            sample_rows=tensor(ends[place[sampled]] - 1),
            samplings=[s.sampling for s in slices if s.sampling is not None],
            sample_positions=[int(contexts[place[i]]) for i in sampled],
        )

"""`Batch`: the tensors of one step, built from slices.

Rows are grouped by how attention handles them: prompts (slices of several tokens) first, then
singles (slices of one token), each kind in the order of the slices. `StepArrays` is the same on
the host; nothing here asks the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batches.sequence import UNKNOWN, Slice
from engine.cache.kv_cache import slots_of
from engine.rows import upload_all
from protocol.sampling import Sampling


@dataclass(frozen=True)
class StepArrays:
    """The arrays of one step on the host. They are [rows] int64 unless they say otherwise."""

    input_ids: np.ndarray
    """Token ids; UNKNOWN for those that the step before samples."""
    sources: np.ndarray
    """For a token that is not known on the host: its row in the samples of the step before.
    UNKNOWN for all others."""
    positions: np.ndarray
    write_slots: np.ndarray
    num_prompts: int
    """How many slices have several tokens. They come first; the others have one token each."""
    row_starts: np.ndarray
    """[slices + 1]: where the rows of each slice begin, and at last where those of the last slice
    end."""
    context_lengths: np.ndarray
    """[slices]: how many tokens each sequence has up to the end of its slice."""
    page_tables: np.ndarray
    """[slices, most pages] int32, padded with page 0."""
    sample_rows: np.ndarray
    """The last row of each slice with `sampling`, in the order in which the slices were given."""
    samplings: list[Sampling]
    sample_positions: list[int]
    """The position that each sampled token will have in its sequence."""
    scored_rows: np.ndarray
    """The rows before the `scored` tokens of the slices, in the order in which those were given."""

    @classmethod
    def of(
        cls, slices: Sequence[Slice], page_size: int, previous: Sequence[Slice] = ()
    ) -> StepArrays:
        """Lays out one step of at least one slice, none of which is empty. `previous` are the
        slices of the step that `Slice.follows` refers to."""
        lengths = np.array([len(s.token_ids) for s in slices])
        assert len(slices) > 0 and lengths.all(), "a step computes at least one token per slice"
        # Stable, so that slices of each kind stay in the order in which they were given.
        order = np.argsort(lengths == 1, kind="stable")  # slices in the order of their rows
        ordered = [slices[i] for i in order]
        lengths = lengths[order]
        starts = np.array([s.start for s in ordered])
        contexts = starts + lengths
        ends = lengths.cumsum()
        num_pages = -(-contexts // page_size)
        tables = np.zeros((len(ordered), num_pages.max()), dtype=np.int32)
        tables[np.arange(tables.shape[1]) < num_pages[:, None]] = np.concatenate(
            [s.pages[:count] for s, count in zip(ordered, num_pages, strict=True)]
        )
        owner = np.repeat(np.arange(len(ordered)), lengths)
        # The row within its slice, plus where the slice starts in its sequence.
        positions = np.arange(ends[-1]) - (ends - lengths)[owner] + starts[owner]
        write_pages = tables[owner, positions // page_size].astype(np.int64)
        sources = np.full(ends[-1], UNKNOWN)
        if any(s.follows is not None for s in slices):
            # Samples have no row for slices that sample nothing: position of the slice → row.
            ordinals = np.cumsum([s.sampling is not None for s in previous]) - 1
            sources[ends - 1] = [
                UNKNOWN if s.follows is None else ordinals[s.follows] for s in ordered
            ]
        place = np.argsort(order)  # of each slice among the ordered ones
        sampled = [i for i, s in enumerate(slices) if s.sampling is not None]
        return cls(
            input_ids=np.concatenate([np.asarray(s.token_ids, dtype=np.int64) for s in ordered]),
            sources=sources,
            positions=positions,
            write_slots=slots_of(write_pages, positions % page_size, page_size),
            num_prompts=int((lengths > 1).sum()),
            row_starts=np.append(0, ends),
            context_lengths=contexts,
            page_tables=tables,
            sample_rows=ends[place[sampled]] - 1,
            samplings=[s.sampling for s in slices if s.sampling is not None],
            sample_positions=[int(contexts[place[i]]) for i in sampled],
            scored_rows=_scored_rows(slices, (ends - lengths)[place]),
        )

    @property
    def num_slices(self) -> int:
        """The number of slices of the step."""
        return len(self.context_lengths)


@dataclass(frozen=True)
class SliceGroup:
    """All prompts of a batch, or all its single tokens: rows [begin, end), slice after slice.

    Fields named `_host` are numpy copies of the tensors, so that a plan can be made without asking
    the device.
    """

    begin: int
    end: int
    row_starts: Tensor
    """[slices + 1] int32: where each slice begins, counted from `begin`."""
    page_tables: Tensor
    """[slices, most pages] int32; padded with page 0."""
    context_lengths: Tensor
    """[slices] int32: how many tokens each sequence has up to the end of its slice."""
    row_starts_host: np.ndarray
    context_lengths_host: np.ndarray
    longest_slice: int
    longest_context: int

    @property
    def num_slices(self) -> int:
        """The number of slices of the group."""
        return len(self.context_lengths_host)


@dataclass(frozen=True)
class Batch:
    """The tensors of one step on the device. Its rows are tokens."""

    input_ids: Tensor
    """[tokens] int64, as are positions and write_slots. No token is UNKNOWN any more."""
    positions: Tensor
    write_slots: Tensor
    """The slot of the pool that each row's K and V are written to."""
    prompts: SliceGroup | None
    singles: SliceGroup | None
    sample_rows: Tensor
    """The rows whose logits are wanted: one per slice with `sampling`, in the order of the
    slices."""
    samplings: list[Sampling]
    sample_positions: list[int]
    """The position that each sampled token will have in its sequence."""
    scored_rows: Tensor | None = None
    """Rows whose logits say how likely the next token of the prompt was; None: there are none."""

    @property
    def output_rows(self) -> Tensor:
        """The rows that the model is asked about: those to sample for, then the scored ones."""
        if self.scored_rows is None:
            return self.sample_rows
        return torch.cat([self.sample_rows, self.scored_rows])

    @classmethod
    def build(cls, slices: Sequence[Slice], page_size: int, device: torch.device) -> Batch:
        """Returns the batch of a step whose tokens are all known. `slices` are as for
        `StepArrays.of`."""
        return cls.of(StepArrays.of(slices, page_size), device)

    @classmethod
    def of(
        cls, arrays: StepArrays, device: torch.device, previous_tokens: Tensor | None = None
    ) -> Batch:
        """Returns the batch of a step, whose arrays it uploads. `previous_tokens` on the device are
        what the step before sampled; None if all tokens are known."""
        ids, sources, positions, write_slots, sample_rows, scored_rows = upload_all(
            [
                arrays.input_ids,
                arrays.sources,
                arrays.positions,
                arrays.write_slots,
                arrays.sample_rows,
                arrays.scored_rows,
            ],
            np.int64,
            device,
        )
        if previous_tokens is not None:
            ids = known_ids(ids, sources, previous_tokens)
        return cls(
            input_ids=ids,
            positions=positions,
            write_slots=write_slots,
            prompts=_group(arrays, 0, arrays.num_prompts, device),
            singles=_group(arrays, arrays.num_prompts, arrays.num_slices, device),
            sample_rows=sample_rows,
            samplings=arrays.samplings,
            sample_positions=arrays.sample_positions,
            scored_rows=scored_rows if len(arrays.scored_rows) else None,
        )


def _scored_rows(slices: Sequence[Slice], first_rows: np.ndarray) -> np.ndarray:
    """`first_rows[i]` is the first row of `slices[i]`."""
    rows = [
        np.arange(len(part.scored.token_ids)) + first + part.scored.first_row
        for part, first in zip(slices, first_rows, strict=True)
        if part.scored is not None
    ]
    return np.concatenate([*rows, np.empty(0, dtype=np.int64)])


def known_ids(input_ids: Tensor, sources: Tensor, previous_tokens: Tensor) -> Tensor:
    """Returns `input_ids` [rows] with tokens of the step before in the rows that `sources`
    gives."""
    return torch.where(sources >= 0, previous_tokens[sources.clamp(min=0)], input_ids)


def _group(arrays: StepArrays, first: int, stop: int, device: torch.device) -> SliceGroup | None:
    if first == stop:
        return None
    begin, end = int(arrays.row_starts[first]), int(arrays.row_starts[stop])
    row_starts = arrays.row_starts[first : stop + 1] - begin
    contexts = arrays.context_lengths[first:stop]
    starts, tables, lengths = upload_all(
        [row_starts, arrays.page_tables[first:stop], contexts], np.int32, device
    )
    return SliceGroup(
        begin=begin,
        end=end,
        row_starts=starts,
        page_tables=tables,
        context_lengths=lengths,
        row_starts_host=row_starts,
        context_lengths_host=contexts,
        longest_slice=int(np.diff(row_starts).max()),
        longest_context=int(contexts.max()),
    )

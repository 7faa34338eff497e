"""Slices on their way to the other ranks. Pure.

A page table grows by a page now and then, and is long: only what is new of it travels. The sampling
of a sequence stays as it is, and is long if it has a grammar: it travels once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from engine.batches.sequence import NO_SEQUENCE, ScoredTokens, Slice
from node.ranks.wire.commands import ScoredCommand, SliceCommand
from protocol.sampling import Sampling


class SliceEncoder:
    """Turns slices into commands, without what the other end knows already: it remembers the page
    tables of the step before, by the position of their slice, and the samplings of sequences."""

    def __init__(self) -> None:
        self._tables: list[bytes] = []
        self._samplings: dict[int, Sampling] = {}

    def encode(self, slices: Sequence[Slice]) -> list[SliceCommand]:
        """Returns the commands for the slices of one step. Every step must be encoded, in order."""
        before = self._tables + [b""] * (len(slices) - len(self._tables))
        self._tables = [np.asarray(part.pages, dtype=np.int32).tobytes() for part in slices]
        return [
            self._encode(part, table, old if table.startswith(old) else b"")
            for part, table, old in zip(slices, self._tables, before, strict=False)
        ]

    def end_sequence(self, sequence_id: int) -> None:
        """Forgets a sequence, of which no slice comes any more. The other end must do so at the
        same place between two steps."""
        self._samplings.pop(sequence_id, None)

    def _encode(self, part: Slice, table: bytes, kept: bytes) -> SliceCommand:
        return SliceCommand(
            token_ids=_bytes(part.token_ids),
            start=part.start,
            keeps_pages=bool(kept),
            new_pages=table[len(kept) :],
            samples=part.sampling is not None,
            new_sampling=self._unless_known(part.sequence_id, part.sampling),
            follows=part.follows,
            sequence_id=part.sequence_id,
            replay=_bytes(part.replay),
            scored=self._encode_scored(part.sequence_id, part.scored),
        )

    def _encode_scored(self, sequence_id: int, scored: ScoredTokens | None) -> ScoredCommand | None:
        if scored is None:
            return None
        new_sampling = self._unless_known(sequence_id, scored.sampling)
        return ScoredCommand(scored.first_row, _bytes(scored.token_ids), new_sampling)

    def _unless_known(self, sequence_id: int, sampling: Sampling | None) -> Sampling | None:
        """Returns the sampling if the other end lacks it, and notes that it gets it."""
        if sampling is None or sampling is self._samplings.get(sequence_id):
            return None
        if sequence_id != NO_SEQUENCE:
            self._samplings[sequence_id] = sampling
        return sampling


class SliceDecoder:
    """Turns the commands of one `SliceEncoder` back into slices."""

    def __init__(self) -> None:
        self._tables: list[bytes] = []
        self._samplings: dict[int, Sampling] = {}

    def decode(self, commands: Sequence[SliceCommand]) -> list[Slice]:
        """Returns the slices of one step. Every step must be decoded, in order."""
        before = self._tables + [b""] * (len(commands) - len(self._tables))
        self._tables = [
            (old if command.keeps_pages else b"") + command.new_pages
            for command, old in zip(commands, before, strict=False)
        ]
        return [
            self._decode(command, table)
            for command, table in zip(commands, self._tables, strict=True)
        ]

    def end_sequence(self, sequence_id: int) -> None:
        """Forgets a sequence, as the encoder did."""
        self._samplings.pop(sequence_id, None)

    def _decode(self, command: SliceCommand, table: bytes) -> Slice:
        sequence_id = command.sequence_id
        return Slice(
            token_ids=_ints(command.token_ids),
            start=command.start,
            pages=np.frombuffer(table, dtype=np.int32),
            sampling=self._known(sequence_id, command.new_sampling) if command.samples else None,
            follows=command.follows,
            sequence_id=sequence_id,
            replay=_ints(command.replay),
            scored=self._decode_scored(sequence_id, command.scored),
        )

    def _decode_scored(
        self, sequence_id: int, command: ScoredCommand | None
    ) -> ScoredTokens | None:
        if command is None:
            return None
        sampling = self._known(sequence_id, command.new_sampling)
        return ScoredTokens(command.first_row, _ints(command.token_ids), sampling)

    def _known(self, sequence_id: int, new_sampling: Sampling | None) -> Sampling:
        """Returns the sampling that has come, and keeps it, or the one that came before."""
        if new_sampling is None:
            return self._samplings[sequence_id]
        if sequence_id != NO_SEQUENCE:
            self._samplings[sequence_id] = new_sampling
        return new_sampling


def _bytes(ids: Iterable[int]) -> bytes:
    return array("i", ids).tobytes()


def _ints(raw: bytes) -> list[int]:
    return array("i", raw).tolist()

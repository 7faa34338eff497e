"""Slices on their way to the other ranks. Pure.

A page table grows by a page now and then, and is long: only what is new of it travels.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from engine.batches.sequence import ScoredTokens, Slice
from node.ranks.wire.commands import ScoredCommand, SliceCommand


class SliceEncoder:
    """Turns slices into commands, without what the other end knows already: it remembers the page
    tables of the step before, by the position of their slice."""

    def __init__(self) -> None:
        self._tables: list[bytes] = []

    def encode(self, slices: Sequence[Slice]) -> list[SliceCommand]:
        """Returns the commands for the slices of one step. Every step must be encoded, in order."""
        before = self._tables + [b""] * (len(slices) - len(self._tables))
        self._tables = [np.asarray(part.pages, dtype=np.int32).tobytes() for part in slices]
        return [
            _encode(part, table, old if table.startswith(old) else b"")
            for part, table, old in zip(slices, self._tables, before, strict=False)
        ]


class SliceDecoder:
    """Turns the commands of one `SliceEncoder` back into slices."""

    def __init__(self) -> None:
        self._tables: list[bytes] = []

    def decode(self, commands: Sequence[SliceCommand]) -> list[Slice]:
        """Returns the slices of one step. Every step must be decoded, in order."""
        before = self._tables + [b""] * (len(commands) - len(self._tables))
        self._tables = [
            (old if command.keeps_pages else b"") + command.new_pages
            for command, old in zip(commands, before, strict=False)
        ]
        return [
            _decode(command, table) for command, table in zip(commands, self._tables, strict=True)
        ]


def _encode(part: Slice, table: bytes, kept: bytes) -> SliceCommand:
    return SliceCommand(
        token_ids=_bytes(part.token_ids),
        start=part.start,
        keeps_pages=bool(kept),
        new_pages=table[len(kept) :],
        sampling=part.sampling,
        follows=part.follows,
        sequence_id=part.sequence_id,
        replay=_bytes(part.replay),
        scored=_encode_scored(part.scored) if part.scored is not None else None,
    )


def _encode_scored(scored: ScoredTokens) -> ScoredCommand:
    return ScoredCommand(scored.first_row, _bytes(scored.token_ids), scored.sampling)


def _decode(command: SliceCommand, table: bytes) -> Slice:
    return Slice(
        token_ids=_ints(command.token_ids),
        start=command.start,
        pages=np.frombuffer(table, dtype=np.int32),
        sampling=command.sampling,
        follows=command.follows,
        sequence_id=command.sequence_id,
        replay=_ints(command.replay),
        scored=_decode_scored(command.scored) if command.scored is not None else None,
    )


def _decode_scored(command: ScoredCommand) -> ScoredTokens:
    return ScoredTokens(command.first_row, _ints(command.token_ids), command.sampling)


def _bytes(ids: Iterable[int]) -> bytes:
    return array("i", ids).tobytes()


def _ints(raw: bytes) -> list[int]:
    return array("i", raw).tolist()

"""Slices on their way to the other ranks. Pure.

A page table grows by a page now and then, and is long: only what is new of it travels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.request import Slice
from node.ranks.commands import SliceCommand


class SliceEncoder:
    """Remembers the page tables of the step before, by the place of their slice."""

    def __init__(self) -> None:
        self._tables: list[np.ndarray] = []

    def encode(self, slices: Sequence[Slice]) -> list[SliceCommand]:
        before, self._tables = self._tables, [np.array(s.pages, dtype=np.int32) for s in slices]
        commands = []
        for place, (part, table) in enumerate(zip(slices, self._tables, strict=True)):
            old = before[place] if place < len(before) else table[:0]
            num_kept_pages = len(old) if np.array_equal(table[: len(old)], old) else 0
            commands.append(_encode(part, table, num_kept_pages))
        return commands


class SliceDecoder:
    """The other end of one `SliceEncoder`: takes every step, in order."""

    def __init__(self) -> None:
        self._tables: list[np.ndarray] = []

    def decode(self, commands: Sequence[SliceCommand]) -> list[Slice]:
        before, self._tables = self._tables, []
        for place, command in enumerate(commands):
            table = np.frombuffer(command.new_pages, dtype=np.int32)
            if command.num_kept_pages:
                table = np.concatenate((before[place][: command.num_kept_pages], table))
            self._tables.append(table)
        return [
            _decode(command, table) for command, table in zip(commands, self._tables, strict=True)
        ]


def _encode(part: Slice, table: np.ndarray, num_kept_pages: int) -> SliceCommand:
    return SliceCommand(
        token_ids=np.asarray(part.token_ids, dtype=np.int32).tobytes(),
        start=part.start,
        num_kept_pages=num_kept_pages,
        new_pages=table[num_kept_pages:].tobytes(),
        sampling=part.sampling,
        history=np.asarray(part.history, dtype=np.int32).tobytes(),
        follows=part.follows,
    )


def _decode(command: SliceCommand, table: np.ndarray) -> Slice:
    return Slice(
        token_ids=np.frombuffer(command.token_ids, dtype=np.int32).tolist(),
        start=command.start,
        pages=table,
        sampling=command.sampling,
        history=np.frombuffer(command.history, dtype=np.int32).tolist(),
        follows=command.follows,
    )

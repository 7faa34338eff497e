"""Slices on their way to the other ranks. Pure.

A page table grows by a page now and then, and is long: only what is new of it travels.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from engine.request import Slice
from node.ranks.commands import SliceCommand


class SliceEncoder:
    """Remembers the page tables of the step before, by the place of their slice."""

    def __init__(self) -> None:
        self._tables: list[list[int]] = []

    def encode(self, slices: Sequence[Slice]) -> list[SliceCommand]:
        before, self._tables = self._tables, [list(part.pages) for part in slices]
        before = before[: len(slices)] + [[]] * (len(slices) - len(before))
        return [
            _encode(part, pages, len(old) if pages[: len(old)] == old else 0)
            for part, pages, old in zip(slices, self._tables, before, strict=True)
        ]


class SliceDecoder:
    """The other end of one `SliceEncoder`: takes every step, in order."""

    def __init__(self) -> None:
        self._tables: list[list[int]] = []

    def decode(self, commands: Iterable[SliceCommand]) -> list[Slice]:
        before, self._tables = self._tables, []
        for i, command in enumerate(commands):
            kept = before[i][: command.num_kept_pages] if command.num_kept_pages else []
            self._tables.append(kept + _ints(command.new_pages))
        return [
            Slice(
                token_ids=_ints(command.token_ids),
                start=command.start,
                pages=pages,
                sampling=command.sampling,
                history=_ints(command.history),
                follows=command.follows,
            )
            for command, pages in zip(commands, self._tables, strict=True)
        ]


def _encode(part: Slice, pages: list[int], num_kept_pages: int) -> SliceCommand:
    return SliceCommand(
        token_ids=_bytes(part.token_ids),
        start=part.start,
        num_kept_pages=num_kept_pages,
        new_pages=_bytes(pages[num_kept_pages:]),
        sampling=part.sampling,
        history=_bytes(part.history),
        follows=part.follows,
    )


def _bytes(ids: Iterable[int]) -> bytes:
    return array("i", ids).tobytes()


def _ints(raw: bytes) -> list[int]:
    return array("i", raw).tolist()

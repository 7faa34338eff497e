"""Slices reach other ranks as they are, whatever went before; what is known already stays home."""

from __future__ import annotations

from engine.batches.sequence import Slice
from node.ranks.wire.slices import SliceEncoder


def test_of_a_page_table_that_grows_only_the_new_page_travels() -> None:
    encoder, table = SliceEncoder(), list(range(1000))
    encoder.encode([Slice([1], 0, table, None)])
    table.append(7)  # the scheduler's own list
    (command,) = encoder.encode([Slice([1], 0, table, None)])
    assert command.keeps_pages and len(command.new_pages) == 4

"""Whatever lies on the board between a node and its companion, reading it ends."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from node.liveness import board as board_module
from node.liveness.board import Board


@given(
    st.lists(st.binary(max_size=40), max_size=3),
    st.lists(st.tuples(st.integers(0, 99), st.binary(min_size=1, max_size=24)), max_size=3),
)
def test_a_message_is_read_as_it_was_written_or_not_at_all(
    messages: list[bytes], blots: list[tuple[int, bytes]]
) -> None:
    board, file = Board.create()
    for message in messages:
        board.write(message)
    if not blots:
        assert board.read() == (messages[-1] if messages else None)
    for place, blot in blots:
        os.pwrite(file, blot, place)
    read = board.read()
    assert read is None or len(read) <= board_module.SLOT_BYTES
    assert isinstance(board.stamped_ns, int)
    board.write(b"after that")
    os.close(file)

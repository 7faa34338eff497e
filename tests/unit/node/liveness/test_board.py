"""The memory between a node and its companion: whole messages only, wherever the writer stands."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from node.liveness import board as boards
from node.liveness.board import SLOT_BYTES, Board


@pytest.fixture
def ends() -> Iterator[tuple[Board, Board]]:
    """The writer's and the reader's view of one board."""
    writer, file = Board.create()
    yield writer, Board(file)
    os.close(file)


def test_the_reader_sees_the_newest_message_and_stamp(ends: tuple[Board, Board]) -> None:
    writer, reader = ends
    assert reader.read() is None and reader.stamped_ns == 0
    for number in range(1, 8):
        message = bytes([number]) * (1000 * number)
        writer.write(message)
        writer.stamp(number)
        assert reader.read() == message and reader.stamped_ns == number


def test_a_writer_that_stops_within_a_message_leaves_the_one_before(
    ends: tuple[Board, Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = ends
    writer.write(b"first")
    writer.write(b"second")
    real = boards._NUMBER

    class Interrupted(Exception):
        pass

    class Stops:
        unpack_from = real.unpack_from

        def pack_into(self, *_: object) -> None:
            raise Interrupted

    monkeypatch.setattr(boards, "_NUMBER", Stops())
    with pytest.raises(Interrupted):
        writer.write(b"third")
    assert reader.read() == b"second"


def test_a_message_may_fill_its_slot_and_no_more(ends: tuple[Board, Board]) -> None:
    writer, reader = ends
    longest = os.urandom(SLOT_BYTES)
    writer.write(longest)
    assert reader.read() == longest
    with pytest.raises(AssertionError, match="bytes"):
        writer.write(longest + b"x")


def test_a_reader_beside_a_busy_writer_sees_whole_messages_in_their_order(
    ends: tuple[Board, Board],
) -> None:
    writer, reader = ends
    last = 2_000

    def write() -> None:
        for number in range(1, last + 1):
            writer.write(number.to_bytes(4, "little") * (1 + number % 700))

    thread = threading.Thread(target=write)
    thread.start()
    seen = [0]
    while seen[-1] < last:
        message = reader.read()
        if message is None:
            assert seen == [0], "a message was there before"
            continue
        number = int.from_bytes(message[:4], "little")
        assert message == message[:4] * (1 + number % 700)
        assert number >= seen[-1]
        if number > seen[-1]:
            seen.append(number)
    thread.join()

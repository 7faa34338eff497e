"""What a node's main loop notes for its companion, and when it wakes it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest

from node.liveness.board import Board
from node.liveness.condition import Told
from node.liveness.heartbeats import Heartbeats
from protocol.ids import Node
from tests.support.coordinator.nodes import info_of, load_of

INFO = info_of(Node("p0", 1))
COORDINATORS = ("127.0.0.1:1",)


class Noted:
    """A board, and how often its reader was woken."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.num_news = 0
        self.heartbeats = Heartbeats(board, INFO, lambda: list(COORDINATORS), self._count)

    def _count(self) -> None:
        self.num_news += 1

    @property
    def told(self) -> Told:
        message = self.board.read()
        assert message is not None
        return msgspec.msgpack.decode(message, type=Told)


@pytest.fixture
def noted() -> Iterator[Noted]:
    board, file = Board.create()
    yield Noted(board)
    os.close(file)


def test_nothing_is_noted_before_the_loop_begins(noted: Noted) -> None:
    assert noted.board.read() is None and noted.board.stamped_ns == 0


def test_work_that_comes_or_goes_is_news(noted: Noted) -> None:
    loads = [
        load_of(queued_tokens=500, num_running=1),
        load_of(queued_tokens=900, num_running=2),
        load_of(),
    ]
    for count, load in enumerate(loads, 1):
        noted.heartbeats.update(load)
        assert noted.num_news == count
        assert noted.told == Told(INFO, load, COORDINATORS)


def test_progress_is_no_news_but_shows_that_the_loop_comes_round(noted: Noted) -> None:
    noted.heartbeats.update(load_of(queued_tokens=500, num_running=1))
    stamped_ns = noted.board.stamped_ns
    for tokens in (400, 300, 200):
        noted.heartbeats.update(load_of(queued_tokens=tokens, num_running=1))
        assert noted.board.stamped_ns > stamped_ns
        stamped_ns = noted.board.stamped_ns
    assert noted.num_news == 1


def test_an_idle_loop_notes_whatever_it_has(noted: Noted) -> None:
    """Who asks an idle node for its counters finds them exact in its next heartbeat."""
    for pages in (10, 9, 8):
        noted.heartbeats.update(load_of(free_pages=pages))
        assert noted.told.load.free_pages == pages
    assert noted.num_news == 1

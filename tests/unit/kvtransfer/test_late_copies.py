"""Copies into a pool that are complete only when they are waited for, as those of a GPU are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kvtransfer.pages.arrivals import Arrivals
from kvtransfer.pages.layout import FrameShape
from kvtransfer.pages.staging import PageRows, RowIndex
from protocol.layout import KVLayout

NUM_LAYERS, NUM_PAGES = 3, 4
LINK = object()


class LateRows(PageRows):
    """Copies when it is waited for, and reads its buffers only then."""

    def __init__(self, pool: Tensor) -> None:
        super().__init__(pool, KVLayout(4, NUM_LAYERS, 1, 8, "float32"), range(1))
        self.num_waits = 0
        self._begun: list[tuple[RowIndex, Tensor]] = []

    def scatter(self, rows: RowIndex, staging: Tensor) -> None:
        self._begun.append((rows, staging))

    def finish_copies(self) -> None:
        self.num_waits += 1
        for rows, staging in self._begun:
            super().scatter(rows, staging)
        self._begun.clear()


class Receiver:
    """A transfer into pages 2 and 0 of a pool of zeros, and what its callbacks saw there."""

    def __init__(self) -> None:
        self.pool = torch.zeros(NUM_LAYERS, NUM_PAGES, 2, 4, 1, 8)
        self.rows = LateRows(self.pool)
        self.seen: list[tuple[object, Tensor]] = []
        see: Callable[[object], None] = lambda news: self.seen.append(  # noqa: E731
            (news, self.pool.clone())
        )
        self.arrivals = Arrivals([2, 0], NUM_LAYERS, 1, None, see, see)

    def bring(self, shape: FrameShape, *messages: range) -> None:
        """Brings these rows of a frame, all of ones."""
        part = self.arrivals.announce(shape, LINK, self.rows)
        assert part is not None
        for rows in messages:
            staging = torch.ones(len(rows) * self.rows.row_bytes // 4).view(torch.uint8)
            self.arrivals.write(part, rows, self.rows, staging)


def test_a_callback_sees_complete_pages_and_a_frame_is_waited_for_once() -> None:
    end = Receiver()
    end.bring(FrameShape(0, 1, 0, NUM_LAYERS), range(0, 2), range(2, 3))
    ((news, pool),) = end.seen
    assert news == 1 and end.rows.num_waits == 1
    assert bool((pool[:, 2] == 1).all()) and not pool[:, [0, 1, 3]].any()
    end.bring(FrameShape(1, 1, 0, NUM_LAYERS), range(0, 3))
    news, pool = end.seen[-1]
    assert news == "" and bool((pool[:, [0, 2]] == 1).all())


@pytest.mark.parametrize("how", ["abort", "link_lost", "fail"])
def test_nothing_is_written_after_a_transfer_has_ended(how: str) -> None:
    end = Receiver()
    end.bring(FrameShape(0, 2, 0, NUM_LAYERS), range(0, 2))
    arguments = {"abort": (), "link_lost": (LINK, "gone"), "fail": ("wrong",)}[how]
    getattr(end.arrivals, how)(*arguments)
    before = end.pool.clone()
    assert before.any(), "a copy was under way"
    end.rows.finish_copies()
    assert torch.equal(end.pool, before)
    for news, pool in end.seen:
        assert news == {"link_lost": "gone", "fail": "wrong"}[how]
        assert torch.equal(pool, before), "it was told before the copies had ended"
    assert len(end.seen) == (how != "abort")


def test_a_page_that_comes_twice_ends_the_transfer() -> None:
    end = Receiver()
    shape = FrameShape(0, 1, 0, NUM_LAYERS)
    end.bring(shape, range(0, 3))
    end.bring(shape, range(0, 3))
    assert [news for news, _ in end.seen] == [1, "a page came twice"]

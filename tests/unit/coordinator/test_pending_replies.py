"""Replies are waited for until all are here, one decides, or it takes too long."""

from __future__ import annotations

import asyncio

from coordinator.pending_replies import PendingReplies

LONG_S = 60.0


def test_one_reply_that_decides_is_enough() -> None:
    """So a node that is gone holds nobody up whom another node refuses."""

    async def test() -> None:
        replies = PendingReplies()
        question = replies.open(["d0", "d1", "d2"], decides=lambda reply: reply == "no")
        replies.answered(question, "d0", "yes")
        waiting = asyncio.create_task(replies.wait(question, LONG_S))
        await asyncio.sleep(0)
        assert not waiting.done()
        replies.answered(question, "d1", "no")
        assert await waiting == {"d0": "yes", "d1": "no"}

    asyncio.run(test())


def test_without_one_all_are_waited_for_as_long_as_they_may_take() -> None:
    async def test() -> None:
        replies = PendingReplies()
        question = replies.open(["d0", "d1"])
        replies.answered(question, "d0", 1)
        assert await replies.wait(question, 0.0) == {"d0": 1}
        replies.answered(question, "d1", 2)  # too late
        both = replies.open(["d0", "d1"])
        for name in ("d0", "d1"):
            replies.answered(both, name, 1)
        assert await replies.wait(both, LONG_S) == {"d0": 1, "d1": 1}

    asyncio.run(test())

"""How a handler waits for one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from coordinator.answers.answer import Answer
from coordinator.answers.request import Request
from coordinator.core.pause import Pause
from coordinator.mailbox import Mailbox
from protocol.sampling import Sampling

DEADLINE_S = 20.0


def mailbox_of() -> Mailbox:
    return Mailbox(Answer(Request([1], Sampling(), 8), "r", 0.0))


def end(mailbox: Mailbox) -> None:
    mailbox.answer.finish("length", 2.0)
    mailbox.wake()


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 2 * DEADLINE_S))


def test_news_wake_a_stream_and_only_the_end_wakes_who_waits_for_it() -> None:
    async def test() -> None:
        stream, whole = mailbox_of(), mailbox_of()
        changed = asyncio.create_task(stream.changed(DEADLINE_S))
        finished = asyncio.create_task(whole.finished(DEADLINE_S))
        await asyncio.sleep(0)
        for mailbox in (stream, whole):
            mailbox.wake()
        await changed
        assert not finished.done()
        end(whole)
        await finished

    run(test)


def test_news_that_came_before_are_not_waited_for_and_are_told_once() -> None:
    async def test() -> None:
        mailbox = mailbox_of()
        mailbox.wake()
        await mailbox.changed(DEADLINE_S)
        with pytest.raises(asyncio.TimeoutError):
            await mailbox.changed(0.01)
        mailbox.wake()
        await mailbox.changed(DEADLINE_S)

    run(test)


def test_an_end_that_came_before_is_not_waited_for() -> None:
    async def test() -> None:
        mailbox = mailbox_of()
        end(mailbox)
        await mailbox.finished(DEADLINE_S)

    run(test)


def test_the_end_is_not_waited_for_without_bound() -> None:
    async def test() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await mailbox_of().finished(0.01)

    run(test)


def test_each_wait_has_its_own_bound_whatever_earlier_ones_had() -> None:
    async def test() -> None:
        mailbox = mailbox_of()
        for earlier_s in (DEADLINE_S, 0.01):
            mailbox.wake()
            await mailbox.changed(earlier_s)
            waiting = asyncio.create_task(mailbox.changed(earlier_s))
            await asyncio.sleep(0)
            mailbox.wake()
            await waiting
            with pytest.raises(asyncio.TimeoutError):
                await mailbox.changed(0.02)

    run(test)


def test_a_timer_of_a_short_wait_does_not_end_a_longer_one() -> None:
    async def test() -> None:
        mailbox = mailbox_of()
        short = asyncio.create_task(mailbox.changed(0.01))
        await asyncio.sleep(0)
        mailbox.wake()
        await short
        long = asyncio.create_task(mailbox.changed(DEADLINE_S))
        with pytest.raises(asyncio.TimeoutError):
            await mailbox_of().changed(0.05)  # by now the first timer has rung
        assert not long.done()
        mailbox.wake()
        await long

    run(test)


def test_a_pause_lets_a_wait_begin_anew() -> None:
    async def test() -> None:
        state = Pause(1, "retract")
        mailbox = Mailbox(mailbox_of().answer, lambda: state)
        finished = asyncio.create_task(mailbox.finished(0.01))
        done, _ = await asyncio.wait([finished], timeout=0.1)
        assert not done, "the wait was over ten times"
        state = Pause(2, None)
        with pytest.raises(asyncio.TimeoutError):
            await finished

    run(test)


def test_a_change_that_is_taken_wakes_nobody_and_the_end_does() -> None:
    async def test() -> None:
        mailbox, offered = mailbox_of(), []
        waiting = asyncio.create_task(
            mailbox.changed(DEADLINE_S, lambda: offered.append(1) is None)
        )
        await asyncio.sleep(0)
        for _ in range(3):
            mailbox.wake()
        await asyncio.sleep(0)
        assert not waiting.done() and len(offered) == 3
        end(mailbox)
        await waiting
        assert len(offered) == 3, "the end is the handler's"

    run(test)


def test_a_change_that_is_refused_is_the_handlers_and_so_is_all_until_it_waits_again() -> None:
    async def test() -> None:
        mailbox, offered = mailbox_of(), []
        waiting = asyncio.create_task(mailbox.changed(DEADLINE_S, lambda: bool(offered.append(1))))
        await asyncio.sleep(0)
        for _ in range(3):
            mailbox.wake()
        await waiting
        mailbox.wake()
        assert len(offered) == 1
        await mailbox.changed(DEADLINE_S, lambda: bool(offered.append(1)))
        assert len(offered) == 1, "what came meanwhile was not waited for"

    run(test)


def test_an_error_of_who_takes_changes_is_raised_by_the_wait() -> None:
    async def test() -> None:
        mailbox = mailbox_of()
        waiting = asyncio.create_task(mailbox.changed(DEADLINE_S, lambda: bool(1 // 0)))
        await asyncio.sleep(0)
        mailbox.wake()
        with pytest.raises(ZeroDivisionError):
            await waiting

    run(test)


def test_changes_that_are_taken_do_not_prolong_the_wait() -> None:
    async def test() -> None:
        mailbox = mailbox_of()
        waiting = asyncio.create_task(mailbox.changed(0.02, lambda: True))
        await asyncio.sleep(0)
        while not waiting.done():
            mailbox.wake()
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.TimeoutError):
            await waiting

    run(test)

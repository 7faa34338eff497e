"""`Mailbox`: how an HTTP handler waits for one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coordinator.answers.answer import Answer
from coordinator.core.pause import Pause


class Mailbox:
    """Lets one HTTP handler wait for news of one answer, with `changed` or `finished`.

    A wait that would end during a pause of the cluster, or soon after one, begins anew instead.
    """

    def __init__(self, answer: Answer, pause: Callable[[], Pause] = Pause) -> None:
        """`pause` tells whether the cluster generates now."""
        self.answer = answer
        self._pause = pause
        self._pause_number = pause().number
        """The state of the cluster as the wait began."""
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_end = False
        self._take: Callable[[], bool] | None = None
        """Is offered each change during the present wait, before the handler is woken."""
        self._wait_ends = 0.0
        """When the wait of now ends in vain, by the loop's clock."""
        self._timeout_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        """Rings at the end of the present wait or of an earlier one, and is set again then."""

    async def changed(self, timeout_s: float, take: Callable[[], bool] | None = None) -> None:
        """Waits until the answer has changed since the last call. Raises TimeoutError.

        Changes during the wait, but for the end, are first offered to `take`: one for which it
        returns True does not end the wait. A callback costs a fraction of waking the handler. What
        it raises is raised here.
        """
        if not self._has_news:
            self._take = take
            await self._wait(timeout_s, for_end=False)
        self._has_news = False

    async def finished(self, timeout_s: float) -> None:
        """Waits until the answer is done. Tokens on the way do not wake the handler. Raises
        TimeoutError."""
        if not self.answer.is_done:
            await self._wait(timeout_s, for_end=True)

    def wake(self) -> None:
        """Wakes the handler, unless it takes the news without: the answer has changed or is
        done."""
        is_done = self.answer.is_done
        if self._take is not None and not is_done:
            try:
                if self._take():
                    return
            except Exception as error:  # it is the handler's, and no concern of who brings the news
                return self._end_wait(error)
        self._has_news = True
        if is_done or not self._waits_for_end:
            self._end_wait()
        if self._timer is not None and is_done:
            self._timer.cancel()
            self._timer = None

    def _end_wait(self, error: Exception | None = None) -> None:
        """Lets the handler go on, which happens later: until then nothing is offered to `take`."""
        self._take = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    async def _wait(self, timeout_s: float, for_end: bool) -> None:
        # A future and a timer cost a tenth of what a task and an event do.
        assert self._waiter is None
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        self._timeout_s = timeout_s
        self._waits_for_end = for_end
        self._set_timer(loop.time() + timeout_s)
        try:
            await waiter
        finally:
            self._waiter = self._take = None

    def _set_timer(self, wait_ends: float) -> None:
        """Bounds the wait. A stream waits for every token, so a timer that is set stays, unless it
        would ring too late."""
        if self._timer is not None:
            if wait_ends >= self._wait_ends:
                self._wait_ends = wait_ends
                return
            self._timer.cancel()
        self._wait_ends = wait_ends
        self._timer = asyncio.get_running_loop().call_at(wait_ends, self._rings)

    def _rings(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        loop = asyncio.get_running_loop()
        pause = self._pause()
        if pause.is_paused or pause.number != self._pause_number:
            self._pause_number = pause.number
            self._wait_ends = loop.time() + self._timeout_s
        if loop.time() < self._wait_ends:
            self._timer = loop.call_at(self._wait_ends, self._rings)
        else:
            self._end_wait(asyncio.TimeoutError())

"""Waits for answers while somebody wants them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.types import Receive

from coordinator.http.answering.submitting import cancel_unfinished
from coordinator.http.errors import AnswerFailed
from coordinator.http.wire.direct_writer import DirectWriter
from coordinator.http.wire.exchange import Exchange
from coordinator.mailbox import Mailbox
from coordinator.service import Service
from coordinator.timelines.timeline import Timeline

LATE_S = 5.0
"""The service ends what takes too long; a handler waits so much longer than that."""


@asynccontextmanager
async def wanted(
    service: Service, receive: Receive, mailboxes: Sequence[Mailbox]
) -> AsyncIterator[None]:
    """Within it, a client that leaves cancels its unfinished answers on every node. So does leaving
    it, for whatever reason. The whole response is written within it."""
    watch = asyncio.create_task(_watch(service, receive, mailboxes))
    try:
        yield
    finally:
        watch.cancel()
        cancel_unfinished(service, mailboxes)
        for mailbox in mailboxes:
            mailbox.answer.timeline.replied(service.now())


def wait_s(service: Service) -> float:
    """Returns how long a handler waits for news of an answer."""
    return service.config.request_timeout_s + LATE_S


async def finish_all(service: Service, mailboxes: Sequence[Mailbox]) -> None:
    """Waits for the end of every answer. Raises AnswerFailed with the first error among them."""
    for mailbox in mailboxes:
        await mailbox.finished(wait_s(service))
    for mailbox in mailboxes:
        require_success(mailbox)


def require_success(mailbox: Mailbox) -> None:
    """Raises AnswerFailed if the answer has ended with an error."""
    if mailbox.answer.error is not None:
        raise AnswerFailed(mailbox.answer.error)


async def follow(
    exchange: Exchange,
    mailbox: Mailbox,
    longest_s: float,
    new_events: Callable[[], bytes],
    settle: Callable[[], Awaitable[None]] | None = None,
    prepare: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Sends what `new_events` makes of an answer, each time that it has changed and at its end;
    b"" sends nothing. What takes long at the end is done by `settle` before, and what takes long
    before every event by `prepare`. Raises AnswerFailed, and TimeoutError if nothing changes for
    `longest_s`.

    As long as the client reads, what is new is written by the very call that brings it, and the
    handler sleeps until the end. While the client does not, or if there is something to prepare,
    the handler sends, and all that comes meanwhile is sent together.
    """
    writer = exchange.direct_writer
    take = None
    if writer is not None and prepare is None:
        take = partial(_write_now, writer, new_events, mailbox.answer.timeline)
    is_done = False
    while not is_done:
        await mailbox.changed(longest_s, take)
        if prepare is not None:
            await prepare()
        require_success(mailbox)
        is_done = mailbox.answer.is_done  # it may end while something is prepared or sent
        if is_done and settle is not None:
            await settle()
        if events := new_events():
            formed_at = time.monotonic()
            await exchange.send_event(events)
            mailbox.answer.timeline.first_event(formed_at, time.monotonic())


async def side_by_side(following: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Follows several answers at once. If one fails, the others are no longer followed."""
    if len(following) == 1:
        return await following[0]
    tasks = [asyncio.create_task(one) for one in following]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _write_now(writer: DirectWriter, new_events: Callable[[], bytes], timeline: Timeline) -> bool:
    """Writes what is new; returns False if that has to wait for the client."""
    if not writer.is_open:
        return False
    events = new_events()
    if not events:
        return True
    if timeline.written_at is not None:
        writer.write(events)
        return True
    formed_at = time.monotonic()
    writer.write(events)
    timeline.first_event(formed_at, time.monotonic())
    return True


async def _watch(service: Service, receive: Receive, mailboxes: Sequence[Mailbox]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel_unfinished(service, mailboxes)

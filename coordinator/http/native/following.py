"""How the answers that a body asks for are followed, and shown to a client that wants a stream."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from coordinator.answers.answer import Answer
from coordinator.http.native.events import StreamEvents
from coordinator.http.native.sglang import SGLangFormatter
from coordinator.http.sessions.turns import Turn
from coordinator.http.wire.exchange import Exchange
from coordinator.mailbox import Mailbox


@dataclass(frozen=True)
class AnswerInProgress:
    """One of the answers that a body asks for, and how it is to be shown."""

    mailbox: Mailbox
    formatter: SGLangFormatter
    stream_interval: int
    """The number of tokens between two events of a stream."""
    turn: Turn | None = None
    """The turn of a session that it answers."""

    @property
    def answer(self) -> Answer:
        """The answer itself, which grows."""
        return self.mailbox.answer

    async def prepare(self) -> None:
        """Makes what is long of the response in parts, between which others have their turn."""
        while self.formatter.prepare():
            await asyncio.sleep(0)

    async def end_turn(self) -> None:
        """Notes the answer, which has ended, in its session. It must be there before the client
        sees the end, and sends the next turn."""
        if self.turn is not None:
            await self.turn.end(self.answer)


class AnswerStream:
    """Sends the events of one answer: at its first token, after every `stream_interval` of them,
    and at its end. Tokens that have come together are one event.

    As long as the client reads, an event is sent by the very call that brings its tokens, and the
    handler sleeps until the end. While the client does not, the handler waits for it, and all that
    comes meanwhile becomes one event.
    """

    def __init__(self, exchange: Exchange, one: AnswerInProgress, events: StreamEvents) -> None:
        self._exchange = exchange
        self._one = one
        self._answer = one.answer
        self._interval = one.stream_interval
        self._events = events
        self._writer = exchange.direct_writer
        # What is long is made in parts, so only the handler can do it.
        is_direct = self._writer is not None and not one.formatter.has_long_fields
        self._take = self._show_now if is_direct else None

    async def run(self, wait_s: float) -> None:
        """Returns when the last event is sent. Raises TimeoutError if the answer does not end."""
        while True:
            await self._one.mailbox.changed(wait_s, self._take)
            await self._one.prepare()  # first: the answer goes on meanwhile
            if self._answer.is_done:
                break
            if self._is_due():
                await self._exchange.send_event(self._events.next(time.monotonic()))
        await self._one.end_turn()
        await self._exchange.send_event(self._events.next(time.monotonic()))

    def _is_due(self) -> bool:
        num_shown = self._events.num_tokens
        return not num_shown or len(self._answer.output_ids) - num_shown >= self._interval

    def _show_now(self) -> bool:
        """Sends the event that is due, if one is; returns False if that has to wait."""
        if not self._is_due():
            return True
        writer = self._writer
        if writer is None or not writer.is_open:
            return False
        writer.write(self._events.next(time.monotonic()))
        return True

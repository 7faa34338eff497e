"""How the answers that a body asks for are followed, and shown to a client that wants a stream."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from coordinator.answers.answer import Answer, NewTokens
from coordinator.http.answering.waiting import follow
from coordinator.http.errors import AnswerFailed
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
    num_seen: int = 0
    """How many tokens the client has already, from another coordinator."""

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
    and at its end. Tokens that have come together are one event."""

    def __init__(
        self,
        exchange: Exchange,
        one: AnswerInProgress,
        events: StreamEvents,
        with_ids: bool = False,
    ) -> None:
        """`with_ids`: events have ids, the numbers of tokens so far."""
        self._exchange = exchange
        self._one = one
        self._answer = one.answer
        self._interval = one.stream_interval
        self._events = events
        self._with_ids = with_ids
        self._is_first = True

    async def run(self, longest_s: float) -> None:
        """Returns when the last event is sent; that of an answer that has failed tells its error.
        Raises TimeoutError if nothing changes for `longest_s`."""
        one = self._one
        prepare = one.prepare if one.formatter.has_long_fields else None
        try:
            await follow(
                self._exchange, one.mailbox, longest_s, self._new_events, one.end_turn, prepare
            )
        except AnswerFailed:
            await one.end_turn()
            await self._exchange.send_event(self._new_events())

    def _new_events(self) -> bytes:
        """Returns the event that is due; b"" if none is."""
        num_tokens, num_shown = len(self._answer.output_ids), self._events.num_tokens
        is_due = not num_shown or num_tokens - num_shown >= self._interval
        if self._is_first and (num_seen := self._one.num_seen):
            is_due = num_tokens > num_seen
            if is_due or self._answer.is_done:
                self._events.skip(*seen_of(self._answer, num_seen))
        if not is_due and not self._answer.is_done:
            return b""
        self._is_first = False
        event = self._events.next(time.monotonic())
        return b"id: %d\n%b" % (num_tokens, event) if self._with_ids else event


def seen_of(answer: Answer, num_tokens: int) -> tuple[int, int]:
    """Returns how many tokens and characters a client has seen of an answer that was shown up to
    its first `num_tokens` tokens."""
    shown = Answer(answer.request, answer.request_id, answer.started_at)
    tokens = answer.output_ids[:num_tokens]
    shown.grow(NewTokens(tokens, answer.logprobs[:num_tokens], 0, 0, 0), None, 0, 0.0)
    return len(tokens), len(shown.text)

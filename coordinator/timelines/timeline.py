"""`Timeline`: the moments of one request, as the coordinator's own clock tells them. Pure.

It only notes moments, and what nodes tell of theirs; `coordinator/timelines/spans.py` makes named
spans of them, when somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.timelines.arrival import Arrival
from protocol.timelines.node_spans import NodeTimes

MAX_ATTEMPTS = 24
"""The most attempts that a timeline keeps, and the most pauses of each; beyond that, the first one
and the newest ones."""
MAX_PAUSES = 12


@dataclass(frozen=True)
class ToldTimes:
    """What came with tokens: where the nodes' time went before these."""

    at: float
    answering: NodeTimes | None
    """Of the node that answers; None if it told nothing."""
    computing: NodeTimes | None
    """Of another node, which computed the prompt; None if there is none."""


@dataclass(eq=False)
class AttemptTimes:
    """One attempt, from when the request waited for a node to the attempt's end."""

    number: int
    waits_from: float
    routed_at: float | None = None
    """When it was decided which nodes it goes to."""
    sent_at: float | None = None
    """When the message to its node was about to leave."""
    decode_node: str = ""
    prefill_node: str = ""
    told: list[ToldTimes] = field(default_factory=list)
    """With the first tokens, and with those after each time that the answer gave way."""
    ended_at: float | None = None
    end: str = ""
    """Why it ended before the request did."""


class Timeline:
    """Notes when things happened to one request, from its arrival to its last byte."""

    def __init__(self, arrival: Arrival, now: float) -> None:
        self.submitted_at = now
        self.parsed_at = min(now, now if arrival.parsed_at is None else arrival.parsed_at)
        received_at = self.parsed_at if arrival.received_at is None else arrival.received_at
        self.received_at = min(received_at, self.parsed_at)
        self.attempts = [AttemptTimes(1, now)]
        self.first_token_at: float | None = None
        self.next_tokens_at: float | None = None
        """When the tokens behind the first ones came."""
        self.formed_at: float | None = None
        """When the first event of the stream was made; None if there is no stream."""
        self.written_at: float | None = None
        """When the first event was given to the connection."""
        self.ended_at: float | None = None
        self.replied_at: float | None = None
        """When nothing was left to write."""

    @property
    def current(self) -> AttemptTimes:
        """The newest attempt."""
        return self.attempts[-1]

    def routed(self, decode_node: str, prefill_node: str, now: float) -> None:
        """Notes that the newest attempt goes to these nodes; `prefill_node` is "" without one."""
        current = self.current
        current.routed_at = now
        current.decode_node, current.prefill_node = decode_node, prefill_node

    def sent(self, now: float) -> None:
        """Notes that the message to the node is about to leave."""
        self.current.sent_at = now

    def told(self, answering: NodeTimes | None, computing: NodeTimes | None, now: float) -> None:
        """Notes that the first tokens of an attempt have come, or the first after a pause."""
        if self.first_token_at is None:
            self.first_token_at = now
        told = self.current.told
        if len(told) == MAX_PAUSES:
            del told[1]
        told.append(ToldTimes(now, answering, computing))

    def next_tokens(self, now: float) -> None:
        """Notes that tokens have come behind the first ones."""
        if self.next_tokens_at is None:
            self.next_tokens_at = now

    def lost(self, why: str, now: float) -> None:
        """Notes that the newest attempt is over without an end of the request, which waits for a
        node again."""
        current = self.current
        if current.routed_at is None:
            return  # it waits on
        current.ended_at, current.end = now, why
        if len(self.attempts) == MAX_ATTEMPTS:
            del self.attempts[1]
        self.attempts.append(AttemptTimes(current.number + 1, now))

    def first_event(self, formed_at: float, now: float) -> None:
        """Notes that the first event of the stream was made at `formed_at` and is written now."""
        if self.written_at is None:
            self.formed_at, self.written_at = formed_at, now

    def ended(self, now: float) -> None:
        """Notes that the answer is complete, or given up."""
        self.ended_at = self.current.ended_at = now

    def replied(self, now: float) -> None:
        """Notes that all is written that the client gets."""
        if self.ended_at is not None and self.replied_at is None:
            self.replied_at = now

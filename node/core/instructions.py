"""What a scheduler tells its shell to do, and what the shell tells it besides messages. Pure.

A scheduler decides and never acts. The shell carries out instructions strictly in their order;
so pages that an `AbortTransfer` gives up may be promised to a later `ExpectPages` of the same list.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.steps.sequence import Sampled, Slice
from protocol.ids import Attempt
from protocol.messages import AnyMessage, Load, Message


@dataclass(frozen=True)
class Send:
    """Send a control message."""

    address: str
    message: Message


@dataclass(frozen=True)
class SendPages:
    """Send these pages as pages `offset …` of the transfer; they stay held until `PagesSent`."""

    data_addresses: tuple[str, ...]
    """Of all ranks of the receiving node, in order."""
    transfer: Attempt
    pages: list[int]
    offset: int
    is_fetch: bool = False
    """The answer to another node's `Fetch`: nothing of this node's own work."""


@dataclass(frozen=True)
class StreamPages:
    """As `SendPages`, for pages that the step about to be computed completes: each layer is sent
    while the next ones are computed."""

    data_addresses: tuple[str, ...]
    transfer: Attempt
    pages: list[int]
    offset: int


@dataclass(frozen=True)
class CancelSends:
    """What was not yet sent of this transfer need not be; each of its `PagesSent` still comes."""

    transfer: Attempt


@dataclass(frozen=True)
class ExpectPages:
    """Receive a transfer into these pages, in this order."""

    transfer: Attempt
    pages: list[int]


@dataclass(frozen=True)
class AbortTransfer:
    """Never again write into the pages of this transfer, which this node expects."""

    transfer: Attempt


Instruction = Send | SendPages | StreamPages | CancelSends | ExpectPages | AbortTransfer


@dataclass(frozen=True)
class PagesArrived:
    """The first `num_pages` pages of an expected transfer are in the pool; more are to come."""

    transfer: Attempt
    num_pages: int


@dataclass(frozen=True)
class PagesReceived:
    """All pages of an expected transfer are in the pool."""

    transfer: Attempt


@dataclass(frozen=True)
class ReceiveFailed:
    """An expected transfer broke; nothing more will be written."""

    transfer: Attempt
    reason: str


@dataclass(frozen=True)
class PagesSent:
    """One `SendPages` or `StreamPages` ended, and its pages may change: all has left, or (`error`)
    the rest will not be sent. Whether all arrived is for the receiver to say."""

    transfer: Attempt
    error: str = ""
    is_fetch: bool = False
    """As in the `SendPages`: one attempt may be sent here and served to others."""


Event = AnyMessage | PagesArrived | PagesReceived | ReceiveFailed | PagesSent


class Scheduler(Protocol):
    """The pure half of a node. `now` is monotonic seconds."""

    def handle(self, event: Event, now: float) -> list[Instruction]: ...

    def next_batch(self, now: float) -> tuple[list[Slice], list[Instruction]]:
        """The next step, and what to do before it is started; from now on it is under way, and one
        more may be planned before it is over. Without slices there is no step: nothing can be
        computed before the next event, the end of the step under way or a deadline."""

    def finish(self, sampled: Sequence[Sampled | None], now: float) -> list[Instruction]:
        """The oldest step under way is over. Takes what was sampled for each of its slices."""

    def abandon(self, failed: Collection[int], reason: str, now: float) -> list[Instruction]:
        """These slices of the oldest step under way (by position) could not be computed: their
        requests fail and their pages come back. `finish` follows, with the rest."""

    def load(self) -> Load:
        """Queues, pages and counters; the shell adds measured rates."""

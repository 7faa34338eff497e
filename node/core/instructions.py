"""What the core of a node tells its shell to do, and what it is told besides messages. Pure.

The core decides and never acts. The shell carries out instructions strictly in their order; so
pages that an `AbortTransfer` gives up may be promised to a later `ExpectPages` of the same list.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import Attempt
from protocol.messages import AnyMessage, Message


@dataclass(frozen=True)
class SendMessage:
    """Asks to send a control message."""

    address: str
    message: Message


@dataclass(frozen=True)
class SendPages:
    """Asks to send pages as the pages from number `offset` of the transfer. They stay held until
    `PagesSent`."""

    data_addresses: tuple[str, ...]
    """Where the ranks of the receiving node take pages, in the order of ranks."""
    transfer: Attempt
    pages: list[int]
    offset: int
    is_fetch: bool = False
    """True if the pages answer another node's `Fetch`, and not a `Prefill`."""


@dataclass(frozen=True)
class StreamPages:
    """Asks for the same as `SendPages`, for pages that the next step completes: each layer is sent
    while the step computes the following ones."""

    data_addresses: tuple[str, ...]
    transfer: Attempt
    pages: list[int]
    offset: int


@dataclass(frozen=True)
class CopyPages:
    """Copy each of the pages `sources` into the page of `destinations` in the same place, before
    anything that is started or expected later. No page is both."""

    sources: list[int]
    destinations: list[int]


@dataclass(frozen=True)
class CancelSends:
    """Asks to drop what was not yet sent of this transfer. Each of its `PagesSent` still comes."""

    transfer: Attempt


@dataclass(frozen=True)
class ExpectPages:
    """Asks to receive a transfer into these pages, in this order."""

    transfer: Attempt
    pages: list[int]
    serial: int = 0
    """A number that the `NodeCore` sets and that all news of this transfer repeats, so that news of
    an aborted transfer is not taken for news of the next one of the same name."""


@dataclass(frozen=True)
class AbortTransfer:
    """Asks never to write into the pages of this transfer again, which this node expects."""

    transfer: Attempt


@dataclass(frozen=True)
class EndSequence:
    """Asks the runner to forget the state of this sequence, once no step under way needs it."""

    sequence_id: int


@dataclass(frozen=True)
class RewriteRecord:
    """Asks to write the whole record of this node in Redis again."""


@dataclass(frozen=True)
class MarkDraining:
    """Asks to mark this node in Redis as draining, so that it gets no new requests, and to tell
    probes that it is not ready any more. `DrainMarked` follows."""


Instruction = (
    SendMessage
    | SendPages
    | StreamPages
    | CopyPages
    | CancelSends
    | ExpectPages
    | AbortTransfer
    | EndSequence
    | RewriteRecord
    | MarkDraining
)


@dataclass(frozen=True)
class PagesArrived:
    """Says that the first `num_pages` pages of an expected transfer are in the pool; more are to
    come."""

    transfer: Attempt
    num_pages: int
    serial: int = 0


@dataclass(frozen=True)
class PagesReceived:
    """Says that all pages of an expected transfer are in the pool."""

    transfer: Attempt
    serial: int = 0


@dataclass(frozen=True)
class ReceiveFailed:
    """Says that an expected transfer broke; nothing more will be written for it."""

    transfer: Attempt
    reason: str
    serial: int = 0


TransferNews = PagesArrived | PagesReceived | ReceiveFailed
"""What becomes of an expected transfer."""


@dataclass(frozen=True)
class PagesSent:
    """Says that one `SendPages` or `StreamPages` has ended, so its pages may change. Either all of
    it has left, or (with an `error`) the rest will not be sent. Whether it arrived is for the
    receiver to say."""

    transfer: Attempt
    error: str = ""
    is_fetch: bool = False
    """Repeats `SendPages.is_fetch`: pages of one attempt may be sent both for a prompt and for a
    fetch."""


@dataclass(frozen=True)
class ToldToLeave:
    """Says that this node is to end what it does, and then itself."""


@dataclass(frozen=True)
class DrainMarked:
    """Says whether Redis has taken the mark of a draining node."""

    is_written: bool


Event = AnyMessage | TransferNews | PagesSent | ToldToLeave | DrainMarked

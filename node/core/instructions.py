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
    """Send a control message."""

    address: str
    message: Message


@dataclass(frozen=True)
class SendPages:
    """Send these pages as pages `offset …` of the transfer; they stay held until `PagesSent`."""

    data_addresses: tuple[str, ...]
    """Where all ranks of the receiving node take pages, in order."""
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
class CopyPages:
    """Copy each of the pages `sources` into the page of `destinations` in the same place, before
    anything that is started or expected later. No page is both."""

    sources: list[int]
    destinations: list[int]


@dataclass(frozen=True)
class CancelSends:
    """What was not yet sent of this transfer need not be; each of its `PagesSent` still comes."""

    transfer: Attempt


@dataclass(frozen=True)
class ExpectPages:
    """Receive a transfer into these pages, in this order."""

    transfer: Attempt
    pages: list[int]
    serial: int = 0
    """Set by the `NodeCore`, and repeated in all news of this transfer: news of one that was
    aborted must not be taken for news of the next one of the same name."""


@dataclass(frozen=True)
class AbortTransfer:
    """Never again write into the pages of this transfer, which this node expects."""

    transfer: Attempt


@dataclass(frozen=True)
class EndSequence:
    """The runner may forget the state of this sequence once no step under way needs it."""

    sequence_id: int


@dataclass(frozen=True)
class RewriteRecord:
    """Write the whole record of this node in Redis again."""


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
)


@dataclass(frozen=True)
class PagesArrived:
    """The first `num_pages` pages of an expected transfer are in the pool; more are to come."""

    transfer: Attempt
    num_pages: int
    serial: int = 0


@dataclass(frozen=True)
class PagesReceived:
    """All pages of an expected transfer are in the pool."""

    transfer: Attempt
    serial: int = 0


@dataclass(frozen=True)
class ReceiveFailed:
    """An expected transfer broke; nothing more will be written."""

    transfer: Attempt
    reason: str
    serial: int = 0


TransferNews = PagesArrived | PagesReceived | ReceiveFailed
"""What becomes of an expected transfer."""


@dataclass(frozen=True)
class PagesSent:
    """One `SendPages` or `StreamPages` ended, and its pages may change: all has left, or (`error`)
    the rest will not be sent. Whether all arrived is for the receiver to say."""

    transfer: Attempt
    error: str = ""
    is_fetch: bool = False
    """Repeats that of the `SendPages`: one attempt may be sent here and served to others."""


Event = AnyMessage | TransferNews | PagesSent

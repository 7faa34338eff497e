"""What rank 0 tells the other ranks of its node, and what they report, as msgspec structs. Pure.

Every rank carries out the same commands in the same order. Expected transfers are known by the
number of their life, sends and streams by one of their own: a transfer may be expected anew, and
be sent in several parts.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kvtransfer.transport import LinkStats
from protocol.ids import Attempt
from protocol.sampling import Sampling


class RankCommand(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0 → another rank."""


class RankReport(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Another rank → rank 0."""


class ScoredCommand(msgspec.Struct, frozen=True, array_like=True):
    """`ScoredTokens`. Token ids are int32 bytes in this machine's order."""

    first_row: int
    token_ids: bytes
    sampling: Sampling


class SliceCommand(msgspec.Struct, frozen=True, array_like=True):
    """A `Slice`. Token ids are int32 bytes in this machine's order."""

    token_ids: bytes
    start: int
    keeps_pages: bool
    """The page table begins with that of the slice in this place of the step before."""
    new_pages: bytes
    """The rest of the page table, as int32 bytes."""
    sampling: Sampling | None
    follows: int | None
    sequence_id: int
    replay: bytes
    scored: ScoredCommand | None = None


class StepCommand(RankCommand, frozen=True):
    """Start a step."""

    number: int
    slices: list[SliceCommand]
    feeds_streams: bool
    """Open streams are told of each layer."""
    after: int
    """The number of the step that `Slice.follows` refers to; 0 if there is none."""


class EndSequenceCommand(RankCommand, frozen=True):
    """Forget the state of this sequence."""

    sequence_id: int


class ExpectCommand(RankCommand, frozen=True):
    """Expect a transfer into these pages, in this order; the rank says `Expecting`."""

    number: int
    transfer: Attempt
    pages: list[int]


class AbortCommand(RankCommand, frozen=True):
    """Abort the transfer's present life; the rank answers `Aborted`."""

    number: int
    transfer: Attempt


class SendCommand(RankCommand, frozen=True):
    """Send these pages, at once or layer by layer as steps compute them; the rank says `Sent`."""

    kind: Literal["send", "stream"]
    number: int
    peer: list[str]
    transfer: Attempt
    pages: list[int]
    offset: int


class FinishStreamCommand(RankCommand, frozen=True):
    """All layers of this stream's pages are in the pool."""

    number: int


class CancelCommand(RankCommand, frozen=True):
    """What was not yet sent of this transfer need not be."""

    transfer: Attempt


class PoolPages(RankCommand, frozen=True):
    """Comes at the start, once every rank has said how many pages it has memory for: the least of
    these numbers."""

    num_pages: int


class PagesFit(RankReport, frozen=True):
    """Comes at the start, with the weights loaded: this rank's KV pool could have so many pages."""

    num_pages: int


class Ready(RankReport, frozen=True):
    """Comes at the start, last: the rank can compute."""

    data_address: str


class StartFailed(RankReport, frozen=True):
    """Comes at the start, instead of `Ready`: a sentence for the user."""

    reason: str


class ShareFailed(RankReport, frozen=True):
    """This rank's share of a step failed."""

    number: int
    num_operations: int
    """How many collective operations this process has begun; -1 if one of them failed."""
    error: str


class Expecting(RankReport, frozen=True):
    """This rank takes pages of a transfer from now on; what came before was dropped."""

    number: int


class Arrived(RankReport, frozen=True):
    """The first `num_pages` pages of an expected transfer have this rank's heads."""

    number: int
    num_pages: int


class Received(RankReport, frozen=True):
    """An expected transfer ended here: all pages have arrived, or `error`."""

    number: int
    error: str


class Aborted(RankReport, frozen=True):
    """This rank will never again write for this life of a transfer."""

    number: int


class Sent(RankReport, frozen=True):
    """A send or stream ended here."""

    number: int
    error: str


class Links(RankReport, frozen=True):
    """This rank's `Transport.links()`, now and then."""

    stats: list[LinkStats]


TransportCommand = ExpectCommand | AbortCommand | SendCommand | FinishStreamCommand | CancelCommand
TransportReport = Expecting | Arrived | Received | Aborted | Sent | Links
AnyCommand = StepCommand | EndSequenceCommand | TransportCommand | PoolPages
AnyReport = PagesFit | Ready | StartFailed | ShareFailed | TransportReport

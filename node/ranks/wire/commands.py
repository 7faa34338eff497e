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
    """The base of what rank 0 tells another rank."""


class RankReport(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The base of what another rank tells rank 0."""


class ScoredCommand(msgspec.Struct, frozen=True, array_like=True):
    """`ScoredTokens`. Token ids are int32 bytes in this machine's order."""

    first_row: int
    token_ids: bytes
    new_sampling: Sampling | None
    """None if it is the last one that came for this sequence."""


class SliceCommand(msgspec.Struct, frozen=True, array_like=True):
    """A `Slice` on its way. Token ids are int32 bytes in this machine's byte order."""

    token_ids: bytes
    start: int
    keeps_pages: bool
    """True if the page table begins with that of the slice at this position of the step before."""
    new_pages: bytes
    """The rest of the page table, as int32 bytes."""
    samples: bool
    """True if a token is wanted."""
    new_sampling: Sampling | None
    """How it is chosen; None if no token is wanted, or as the last sampling says that came for this
    sequence."""
    follows: int | None
    sequence_id: int
    replay: bytes
    scored: ScoredCommand | None = None


class StepCommand(RankCommand, frozen=True):
    """Tells the rank to start a step."""

    number: int
    slices: list[SliceCommand]
    feeds_streams: bool
    """True if open streams are to be told of each layer."""
    after: int
    """The number of the step that `Slice.follows` refers to; 0 if there is none."""


class EndSequenceCommand(RankCommand, frozen=True):
    """Tells the rank to forget the state of this sequence."""

    sequence_id: int


class CopyCommand(RankCommand, frozen=True):
    """Copy KV pages."""

    sources: list[int]
    destinations: list[int]


class ExpectCommand(RankCommand, frozen=True):
    """Tells the rank to expect a transfer into these pages, in this order; it reports
    `Expecting`."""

    number: int
    transfer: Attempt
    pages: list[int]


class AbortCommand(RankCommand, frozen=True):
    """Tells the rank to abort the transfer as it is expected now; it reports `Aborted`."""

    number: int
    transfer: Attempt


class SendCommand(RankCommand, frozen=True):
    """Tells the rank to send these pages, at once or layer by layer as steps compute them; it
    reports `Sent`."""

    kind: Literal["send", "stream"]
    number: int
    peer: list[str]
    transfer: Attempt
    pages: list[int]
    offset: int


class FinishStreamCommand(RankCommand, frozen=True):
    """Tells the rank that all layers of this stream's pages are in the pool."""

    number: int


class CancelCommand(RankCommand, frozen=True):
    """Tells the rank to drop what was not yet sent of this transfer."""

    transfer: Attempt


class PoolPages(RankCommand, frozen=True):
    """Tells the rank how many pages its pool gets: the least that any rank has memory for. It comes
    once, at the start, after every `PagesFit`."""

    num_pages: int


class PagesFit(RankReport, frozen=True):
    """Reports how many pages this rank has memory for, once, at the start, when its weights are
    loaded."""

    num_pages: int


class Ready(RankReport, frozen=True):
    """Reports that the rank can compute, and where it takes pages. It is the last report of the
    start."""

    data_address: str


class StartFailed(RankReport, frozen=True):
    """Reports, instead of `Ready`, why the rank cannot start, in a sentence for the user."""

    reason: str


class ShareFailed(RankReport, frozen=True):
    """Reports that this rank's share of a step failed."""

    number: int
    num_operations: int
    """How many collective operations this process has begun; -1 if one of them failed."""
    error: str


class Expecting(RankReport, frozen=True):
    """Reports that the rank takes pages of a transfer from now on; what came before was dropped."""

    number: int


class Arrived(RankReport, frozen=True):
    """Reports that the first `num_pages` pages of an expected transfer have this rank's heads."""

    number: int
    num_pages: int


class Received(RankReport, frozen=True):
    """Reports that an expected transfer has ended here: all pages have arrived, or there is an
    `error`."""

    number: int
    error: str


class Aborted(RankReport, frozen=True):
    """Reports that this rank will never again write for this expectation of a transfer."""

    number: int


class Sent(RankReport, frozen=True):
    """Reports that a send or stream has ended here."""

    number: int
    error: str


class Links(RankReport, frozen=True):
    """Reports this rank's `Transport.links()`. It comes now and then."""

    stats: list[LinkStats]


TransportCommand = ExpectCommand | AbortCommand | SendCommand | FinishStreamCommand | CancelCommand
TransportReport = Expecting | Arrived | Received | Aborted | Sent | Links
AnyCommand = StepCommand | EndSequenceCommand | CopyCommand | TransportCommand | PoolPages
AnyReport = PagesFit | Ready | StartFailed | ShareFailed | TransportReport

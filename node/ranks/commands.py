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


class Command(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Rank 0 → another rank."""


class Report(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Another rank → rank 0."""


class SliceCommand(msgspec.Struct, frozen=True, array_like=True):
    """A `Slice`; ids as int32 bytes, in the order of this machine."""

    token_ids: bytes
    start: int
    keeps_pages: bool
    """The page table begins with that of the slice in this place of the step before."""
    new_pages: bytes
    """What follows."""
    sampling: Sampling | None
    history: bytes
    follows: int | None


class Step(Command, frozen=True):
    number: int
    slices: list[SliceCommand]
    feeds_streams: bool
    """Open streams are told of each layer."""
    after: int
    """`Slice.follows` refers to the step of this number; 0: to none."""


class Expect(Command, frozen=True):
    number: int
    transfer: Attempt
    pages: list[int]


class Abort(Command, frozen=True):
    """Of the transfer's present life, answered by `Aborted`."""

    number: int
    transfer: Attempt


class SendOrStream(Command, frozen=True):
    kind: Literal["send", "stream"]
    number: int
    peer: list[str]
    transfer: Attempt
    pages: list[int]
    offset: int


class FinishStream(Command, frozen=True):
    number: int


class Cancel(Command, frozen=True):
    transfer: Attempt


class PoolPages(Command, frozen=True):
    """At start, once every rank has said how many it has memory for: the least of them."""

    num_pages: int


class PagesFit(Report, frozen=True):
    """At start, with the weights loaded: the KV pool of this rank could have so many pages."""

    num_pages: int


class Ready(Report, frozen=True):
    """At start, last."""

    data_address: str


class StartFailed(Report, frozen=True):
    """At start: a sentence for the user."""

    reason: str


class StepFailed(Report, frozen=True):
    number: int
    num_operations: int
    """Collective ones begun in this life, all of which ended well; else -1."""
    error: str


class Arrived(Report, frozen=True):
    """The first `num_pages` pages of an expected transfer have this rank's heads."""

    number: int
    num_pages: int


class Received(Report, frozen=True):
    """An expected transfer ended here: all pages have arrived, or `error`."""

    number: int
    error: str


class Aborted(Report, frozen=True):
    """This rank will never again write for this life of a transfer."""

    number: int


class Sent(Report, frozen=True):
    """A send or stream ended here."""

    number: int
    error: str


class Links(Report, frozen=True):
    """This rank's `Transport.links()`, now and then."""

    stats: list[LinkStats]


TransportCommand = Expect | Abort | SendOrStream | FinishStream | Cancel
TransportReport = Arrived | Received | Aborted | Sent | Links
AnyCommand = Step | TransportCommand | PoolPages
AnyReport = PagesFit | Ready | StartFailed | StepFailed | TransportReport

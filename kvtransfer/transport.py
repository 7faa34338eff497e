"""`Transport`: the interface through which KV pages get from one node's pool into another's. Pure.

The receiver reserves pages and calls `expect` before the sender is told to send, so that nothing
arrives without a place. Callbacks run on the transport's threads. Each `OnDone` is called exactly
once, with "" for success or a sentence that says what is wrong, unless `abort` comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from protocol.ids import Attempt

OnDone = Callable[[str], None]
OnProgress = Callable[[int], None]
"""Is called with the number of leading pages of a transfer that are complete."""


class PeerLost(Exception):
    """The other end of a link is gone, was silent beyond a deadline, or closed the link."""


class LayoutMismatch(Exception):
    """The peer refused the link, as it has another KV layout or model. Nothing was sent."""


@dataclass(frozen=True)
class LinkStats:
    """What went to, or came from, one peer since the start, over all links there ever were."""

    peer: str
    """The peer's node name; its address as long as no link to it was ever made."""
    direction: Literal["out", "in"]
    transport: str
    """The backend of the last link: gloo, nccl, shm, …; "" before the first one. Ranks of one node
    may use several, as nccl+shm."""
    is_open: bool
    """True while there is a link."""
    bytes_moved: int
    pages_moved: int
    """`bytes_moved` in whole pages of this rank's pool, all layers and heads of the rank."""
    busy_s: float
    """Seconds during which messages were under way."""
    bytes_per_s: float
    """The bandwidth, measured over bursts of at least 1 MiB; 0 before the first such burst."""
    failures: int
    """Links that broke or could not be made, and messages with a wrong checksum."""
    num_opened: int = 0
    """How many links there were, the open one among them."""


class PageStream(Protocol):
    """Pages that are sent while they are being computed, layer after layer."""

    def layers_ready(self, num_layers: int) -> None:
        """Says that the first `num_layers` layers of the pages may be sent.

        Their K and V are in the pool; on a CUDA device, they will be when the work is done that
        the current CUDA stream has been given so far.
        """

    def finish(self) -> None:
        """Says, as `layers_ready` does, that all layers may be sent. Ends the stream."""


class Transport(Protocol):
    """Sends pages out of the pool of one rank of a node, and receives pages into it.

    A `peer` is given as the addresses of all its ranks, in order. Each rank is sent the KV heads
    that it has in common with this one.
    """

    address: str
    """host:port, where the transports of other ranks connect to this one."""

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None:
        """Lets page i of the transfer be written into pool page `pages[i]` when it arrives.

        Calls `on_progress` whenever more leading pages are complete, and `on_done("")` when all
        are. If a link that brought or announced a part of the transfer is lost, calls `on_done`
        with the reason. Before any link has announced a part nothing ends the transfer, so the
        caller must have a deadline of its own and `abort`.
        """

    def abort(self, transfer: Attempt) -> None:
        """Stops receiving a transfer. Does nothing for an unknown one.

        From its return on, nothing is written for the transfer and none of its callbacks is
        called, so its pages may be given to others.
        """

    def send(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        """Begins to send `pages` of the pool as the pages from number `offset` of the transfer.

        Their K and V must be in the pool. Returns at once; nothing is copied, so the pages must
        not change until `on_done`. A link is made on first use, and anew after a failure. Without
        pages nothing but that happens, and `on_done` is called before the links are there.
        """

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> PageStream:
        """Does what `send` does, for pages that are about to be computed.

        The caller reports each layer to the stream that is returned, and must call `finish` on
        it or `cancel` the transfer.
        """

    def cancel(self, transfer: Attempt) -> None:
        """Stops sending a transfer: the frames that are not announced yet are dropped, and its
        `on_done` gets a reason. Its streams need no further call."""

    def links(self) -> list[LinkStats]:
        """Returns one entry per peer and direction that there were links for."""

    def close(self) -> None:
        """Ends every link and thread. Sends that are not over fail."""

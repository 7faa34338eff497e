"""`Transport`: KV pages from one node's pool into another's. The interface; pure.

The receiver reserves pages and calls `expect` before the sender is told to send. Callbacks run on
the transport's threads; each `OnDone` exactly once, with "" or a sentence that says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from protocol.ids import Attempt

OnDone = Callable[[str], None]
OnProgress = Callable[[int], None]
"""Takes how many leading pages of a transfer are complete."""


class PeerLost(Exception):
    """The other side is gone, silent beyond the deadline, or closed the link."""


class LayoutMismatch(Exception):
    """The other side has another KV layout or another model; nothing was sent."""


@dataclass(frozen=True)
class LinkStats:
    """One direction to or from one peer, over all links there ever were."""

    peer: str
    """The peer's node name; its address until it was reached once."""
    direction: Literal["out", "in"]
    transport: str
    """How bytes travelled last: gloo, nccl, shm, …; "" before the first link."""
    is_open: bool
    bytes_moved: int
    pages_moved: int
    """Page-equivalents: a page counts as one when all of its layers and heads have moved."""
    busy_s: float
    """Time with bytes under way."""
    bytes_per_s: float
    """Measured over large frames; 0 until there was one."""
    failures: int


class PageStream(Protocol):
    """Pages that are sent while they are computed, layer after layer."""

    def layers_ready(self, num_layers: int) -> None:
        """The first `num_layers` layers of the pages are in the pool; on a CUDA device, they will
        be once the work is done that the current stream has been given so far."""

    def finish(self) -> None:
        """All layers are in the pool, as for `layers_ready`; nothing follows."""


class Transport(Protocol):
    """One per rank of a node. `address` is host:port, where other transports connect.

    A peer is named by the addresses of all its ranks, in order; each rank is sent the KV heads
    that it has in common with this one.
    """

    address: str

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None:
        """Page i of the transfer goes into pool page `pages[i]`.

        `on_progress` is told whenever more of the leading pages are complete, but for the last
        time, which is `on_done("")`: all have arrived. Else it ends with the failure of a link that
        brought or announced a part. While there is no such link the caller has a deadline.
        """

    def abort(self, transfer: Attempt) -> None:
        """When this returns, nothing will ever again be written for this transfer, and no callback
        is called. Harmless for unknown transfers."""

    def send(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        """Sends `pages`, complete in the pool, as pages `offset …` of the transfer.

        Returns at once: the pages must not change until `on_done`. Links are made on first use and
        made anew after a failure.
        """

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> PageStream:
        """As `send`, for pages that are about to be computed."""

    def cancel(self, transfer: Attempt) -> None:
        """What of this transfer has not begun to be sent is not sent; its `on_done` is told so.
        Its streams need no further call."""

    def links(self) -> list[LinkStats]: ...

    def close(self) -> None:
        """Ends every link and thread; unfinished sends fail."""

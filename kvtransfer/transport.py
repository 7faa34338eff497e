"""`Transport`: KV pages from one node's pool into another's. The interface; pure.

The receiver reserves pages and calls `expect` before the sender is told to send. Callbacks run on
the transport's threads, exactly once each, with "" or a sentence that says what went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from protocol.ids import Attempt

OnDone = Callable[[str], None]


class PeerLost(Exception):
    """The other side is gone, silent beyond the deadline, or closed the link."""


class LayoutMismatch(Exception):
    """The other side has another KV layout or another model; nothing was sent."""


@dataclass(frozen=True)
class LinkStats:
    """One direction to or from one peer, over all links there ever were."""

    peer: str
    direction: Literal["out", "in"]
    is_open: bool
    bytes_moved: int
    pages_moved: int
    bytes_per_s: float
    """Measured over large frames; 0 until there was one."""
    failures: int


class Transport(Protocol):
    """One per node. `address` is host:port, where other nodes' transports connect."""

    address: str

    def expect(self, transfer: Attempt, pages: Sequence[int], on_done: OnDone) -> None:
        """Page i of the transfer goes into pool page `pages[i]`.

        Ends with success when all have arrived, or with the failure of the link that brought or
        announced the newest part. While there is no such link the caller has a deadline.
        """

    def abort(self, transfer: Attempt) -> None:
        """When this returns, nothing will ever again be written for this transfer; no callback
        follows. Harmless for unknown transfers."""

    def send(
        self,
        peer_address: str,
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        """Copies `pages` out of the pool before it returns, then streams them as pages
        `offset …` of the transfer.

        Waits, with a deadline, while too much is staged for this peer. Links are made on first
        use and made anew after a failure.
        """

    def links(self) -> list[LinkStats]: ...

    def close(self) -> None:
        """Ends every link and thread; unfinished sends fail."""

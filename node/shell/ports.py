"""What the shell of a node uses of the world, so that a simulator can run the very shell. Pure.

`Runner`, in `node/shell/runner.py`, is the fifth of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from engine.cache.prefix_cache import CacheChange
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream
from protocol.ids import Attempt
from protocol.messages import AnyMessage, Load, Message


class ChannelPort(Protocol):
    """Control messages; see `protocol.channel.Channel`."""

    def send(self, address: str, message: Message) -> None:
        """Queues a message. Raises PeerUnreachable."""

    def drain(self, timeout_s: float) -> list[AnyMessage]:
        """Returns the messages that have come; waits so long for the first, or until `wake`."""

    def forget(self, address: str) -> None:
        """Drops what waits for this address."""

    def wake(self) -> None:
        """Ends a `drain` that waits; any thread may call."""


class TransportPort(Protocol):
    """KV pages from and to other nodes; see `kvtransfer.transport.Transport`."""

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None: ...

    def abort(self, transfer: Attempt) -> None: ...

    def send(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None: ...

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> PageStream: ...

    def cancel(self, transfer: Attempt) -> None: ...

    def links(self) -> list[LinkStats]: ...


class PublisherPort(Protocol):
    """The record of this node's pages; see `node.shell.publisher.OwnershipPublisher`."""

    def publish(self, changes: Iterable[CacheChange]) -> None: ...

    def republish(self) -> None: ...


class HeartbeatsPort(Protocol):
    """Tells coordinators of this node's load; see `node.shell.heartbeat.Heartbeats`."""

    def update(self, load: Load) -> None: ...

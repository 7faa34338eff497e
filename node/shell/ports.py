"""What the shell of a node uses of the world, so that a simulator can run the very shell. Pure.

`Runner`, in `node/shell/runner.py`, is the fifth of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from engine.cache.prefix_cache import CacheChange
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream
from protocol.ids import Attempt
from protocol.messages import AnyMessage, Load, Message


class ChannelPort(Protocol):
    """Sends and receives control messages; `protocol.channel.Channel` is the real one."""

    def send(self, address: str, message: Message) -> None:
        """Queues a message. Raises PeerUnreachable."""

    def drain(self, timeout_s: float) -> list[AnyMessage]:
        """Returns the messages that have come; waits up to `timeout_s` for the first, or until
        `wake`."""

    def forget(self, address: str) -> None:
        """Drops the messages that wait to be sent to this address."""

    def wake(self) -> None:
        """Ends a `drain` that waits. May be called by any thread."""


class TransportPort(Protocol):
    """Moves KV pages from and to other nodes. Its methods are those of
    `kvtransfer.transport.Transport`, whose docstrings hold."""

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
    """Publishes which pages this node owns; `node.shell.publisher.OwnershipPublisher` is the real
    one."""

    def publish(self, changes: Iterable[CacheChange]) -> None:
        """Queues changes of the owned set, in their order. Returns at once."""

    def republish(self) -> None:
        """Has the whole set written again, soon."""

    def mark_draining(self, on_done: Callable[[bool], None]) -> None:
        """Marks the node in Redis as one that gets no new requests. Calls `on_done`, on any thread,
        with whether that is written."""


class HeartbeatsPort(Protocol):
    """Notes how this node does, for coordinators to hear; `node.liveness.heartbeats.Heartbeats` is
    the real one."""

    def update(self, load: Load) -> None:
        """Takes the load after a turn of the shell."""

    def tell_draining(self) -> None:
        """Has probes hear, from the next `update` on, that the node is not ready any more."""

"""`IncomingLink`: the receiving end of a link, from greeting to end, on a thread of its own."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvtransfer.backends.pair import RECEIVER_RANK, Pair, PairBackend
from kvtransfer.links.challenge import NotAdmitted, prove_as_accepting
from kvtransfer.links.counts import LinkCounts, LinkMeter
from kvtransfer.links.handshake import (
    PAIR_TIMEOUT_S,
    SILENCE_S,
    Bye,
    FrameHeader,
    Hello,
    Ping,
    Pong,
    Refused,
    Welcome,
    choose_backend,
    is_closed,
    no_backend,
    receive_message,
    refusal,
    send_message,
)
from kvtransfer.links.inbox import Inbox
from kvtransfer.links.peer_health import PeerHealth
from kvtransfer.links.socket_store import SocketStore
from kvtransfer.links.streams import STREAM_KEY, ExpectedStreams, StreamOf
from kvtransfer.pages.arrivals import Part
from kvtransfer.pages.checksum import has_right_checksum
from kvtransfer.pages.layout import CHECKSUM_BYTES, Cut, FrameShape
from kvtransfer.pages.staging import PageRows
from kvtransfer.transport import PeerLost
from protocol.trust.refusals import Refusals
from protocol.trust.secrets import ClusterSecrets

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 2.0
"""How long a new connection may take to send its `Hello`."""


@dataclass(frozen=True)
class ReceivingEnd:
    """What all incoming links of a rank need to know of their own side."""

    hello: Hello
    """This rank's own greeting, which those of senders are compared with."""
    backends: Mapping[str, PairBackend]
    rows_of: Callable[[range], PageRows]
    """Returns the rows of the pool, cut to a range of the whole model's KV heads."""
    max_pages: int
    """Pages of the pool; no honest frame has more."""
    inbox: Inbox
    counts_of: Callable[[str], LinkCounts]
    """Returns the counts of a peer by its node name."""
    on_met: Callable[[str, PeerHealth], None]
    """Is called with the address where a peer receives pages, and where it tells how it does."""
    refusals: Refusals
    streams: ExpectedStreams
    is_closing: threading.Event
    """Is set when this rank ends all links itself."""
    secrets: ClusterSecrets | None = None
    """What every peer must prove to know; None: nothing is asked."""


@dataclass(frozen=True, eq=False)
class _IncomingMessage:
    """A message that the peer has announced."""

    rows: range
    """Which rows of its frame it brings."""
    has_checksum: bool
    part: Part | None
    """Where the frame goes. None: nobody wants it; it is received all the same, because the next
    message on the pair can only be received after it."""


def peer_host(connection: socket.socket) -> str:
    """Returns the host at the other end of a connection, which may be over already."""
    try:
        return str(connection.getpeername()[0])
    except OSError:
        return "somebody"


class IncomingLink:
    """One sender's link into this rank's pool."""

    def __init__(self, connection: socket.socket, end: ReceivingEnd) -> None:
        self.connection = connection
        self.end = end
        self._peer_health: PeerHealth | None = None

    def run(self) -> None:
        """Serves the link until the peer ends it or is lost. Never raises PeerLost: a lost peer
        is this link's affair alone, and its transfers have been told."""
        try:
            self.connection.settimeout(HELLO_TIMEOUT_S)
            prove_as_accepting(self.connection, self.end.secrets)
            first: Hello | StreamOf = receive_message(
                self.connection,
                Hello | StreamOf,  # type: ignore[arg-type]
            )
            if isinstance(first, StreamOf):
                self.end.streams.serve(first.name, self.connection)
                return
            hello = first
            reason = refusal(self.end.hello, hello)
            backend = choose_backend(self.end.hello, hello)
            heads = hello.shard.heads_for(self.end.hello.shard, self.end.hello.layout.num_kv_heads)
            if not reason and not heads:
                reason = "these two ranks have no KV head to exchange"
            if not reason and not backend:
                reason = no_backend(self.end.hello, hello)
            if reason:
                log.error("refused KV pages from %s: %s", hello.node, reason)
                send_message(self.connection, Refused(reason))
                return
            self._serve(hello, self.end.backends[backend], heads)
        except NotAdmitted as error:
            self.end.refusals.refuse("data", peer_host(self.connection), str(error))
        except PeerLost as error:
            log.debug("a connection to the data port ended: %s", error)

    def is_peer_held_up(self) -> bool:
        """Returns True if the peer, which is silent, is alive. Asks its health port."""
        return (
            not is_closed(self.connection)
            and self._peer_health is not None
            and self._peer_health.is_alive()
        )

    def _await_stream(self, store: SocketStore) -> socket.socket:
        """Tells the sender the name of a stream and returns it when it is there. Raises
        PeerLost."""
        name = self.end.streams.expect()
        try:
            store.set(STREAM_KEY, name)
            while True:
                stream = self.end.streams.wait(name, store.left_s)
                if stream is not None:
                    return stream
                if not store.is_prolonged():
                    raise PeerLost("the peer opened no stream")
        finally:
            self.end.streams.forget(name)

    def _serve(self, hello: Hello, backend: PairBackend, heads: range) -> None:
        """Makes the pair and receives frames of `heads` until the end. Raises PeerLost."""
        end, counts = self.end, self.end.counts_of(hello.node.name)
        self._peer_health = PeerHealth(hello.node, hello.health_address, end.secrets)
        end.on_met(hello.address, self._peer_health)
        rows = end.rows_of(heads)
        cut = Cut.of(hello.layout, len(heads), backend.message_bytes)
        welcome = Welcome(
            end.hello.node,
            backend.name,
            backend.message_bytes,
            backend.window,
            end.hello.health_address,
        )
        send_message(self.connection, welcome)
        store = SocketStore(
            self.connection, PAIR_TIMEOUT_S, self._await_stream, self.is_peer_held_up
        )
        pair = backend.make_pair(
            store, RECEIVER_RANK, backend.window, cut.buffer_bytes, self.is_peer_held_up
        )
        meter = counts.opened(backend.name)
        try:
            store.finish()
            self.connection.settimeout(SILENCE_S)
            with rows.on_stream():
                _Receiver(self, pair, backend.window, cut, rows, meter).run()
        except Exception as error:
            meter.failed()
            reason = str(error) or type(error).__name__
            level = logging.DEBUG if end.is_closing.is_set() else logging.WARNING
            log.log(level, "the link from %s is lost: %s", hello.node, reason)
            end.inbox.link_lost(self, f"{hello.node.name}: {reason}")
            raise
        finally:
            meter.close()
            pair.close()


class _Receiver:
    """Receives the frames of a link.

    It posts receives as far ahead as the window allows, as gloo's sends only end when their
    receives are posted, and copies each message into the pool as soon as it is here.
    """

    def __init__(
        self,
        link: IncomingLink,
        pair: Pair,
        window: int,
        cut: Cut,
        pool: PageRows,
        meter: LinkMeter,
    ) -> None:
        self._link = link
        self._connection, self._end = link.connection, link.end
        self._pair = pair
        self._window = window
        self._cut = cut
        self._pool = pool
        self._meter = meter
        self._readable = select.poll()  # `select.select` knows no file beyond the 1024th
        self._readable.register(self._connection, select.POLLIN)
        self._announced: deque[_IncomingMessage] = deque()
        self._posted: deque[_IncomingMessage] = deque()

    def run(self) -> None:
        """Returns after the peer's `Bye`, when all that it sent is here. Raises PeerLost."""
        is_over = False
        # The order matters. A free place in the window is filled first, for a sender may wait for
        # it. A header that is there is read before a message is waited for, so that the window
        # does not run empty between frames. And after `Bye` the posted messages are still awaited:
        # over gloo a send may end before its receiver has taken the message.
        while True:
            if self._announced and len(self._posted) < self._window:
                self._post(self._announced.popleft())
            elif self._posted and (self._announced or is_over or not self._has_header()):
                self._receive(self._posted.popleft())
            elif is_over:
                return
            else:
                is_over = not self._read_header()

    def _has_header(self) -> bool:
        return bool(self._readable.poll(0))

    def _read_header(self) -> bool:
        """Waits for what the peer says next and acts on it. Returns False after a `Bye`."""
        header: FrameHeader | Ping | Bye = receive_message(
            self._connection,
            FrameHeader | Ping | Bye,  # type: ignore[arg-type]
            self._link.is_peer_held_up,
        )
        if isinstance(header, Ping):
            send_message(self._connection, Pong())
        elif isinstance(header, FrameHeader):
            self._announce(header)
        return not isinstance(header, Bye)

    def _announce(self, header: FrameHeader) -> None:
        """Queues the messages of a frame. Raises PeerLost for a frame that cannot be honest."""
        shape: FrameShape = header.shape
        if not shape.is_within(self._end.hello.layout, self._end.max_pages):
            raise PeerLost(f"the peer announced {shape}")
        if not self._posted:
            self._meter.began(time.monotonic())
        arrivals = self._end.inbox.find(header.transfer)
        part = arrivals.announce(shape, self._link, self._pool) if arrivals else None
        for rows in self._cut.messages(shape):
            self._announced.append(_IncomingMessage(rows, header.has_checksums, part))

    def _post(self, message: _IncomingMessage) -> None:
        """Posts the receive of a message, of exactly its size (see `Welcome`)."""
        num_bytes = len(message.rows) * self._cut.row_bytes
        self._pair.post(num_bytes + (CHECKSUM_BYTES if message.has_checksum else 0))
        self._posted.append(message)

    def _receive(self, message: _IncomingMessage) -> None:
        """Waits for a posted message and writes it into the pool, if it is wanted and right."""
        buffer = self._pair.received()
        num_bytes = len(message.rows) * self._cut.row_bytes
        # A wrong checksum ends the transfer and not the link: the next message may be right.
        if message.has_checksum and not has_right_checksum(buffer):
            self._meter.failed()
            if message.part is not None:
                message.part.arrivals.fail("a page arrived with a wrong checksum")
        elif message.part is not None:
            message.part.arrivals.write(message.part, message.rows, self._pool, buffer[:num_bytes])
        self._pair.release()
        self._meter.moved(num_bytes, time.monotonic())

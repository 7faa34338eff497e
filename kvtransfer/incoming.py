"""`Listener`: accepts links from other nodes; one thread for each receives its frames."""

from __future__ import annotations

import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable

from torch import Tensor

from kvtransfer.counts import LinkCounts
from kvtransfer.handshake import (
    FrameHeader,
    Hello,
    Refused,
    Welcome,
    receive_message,
    refusal,
    send_message,
)
from kvtransfer.inbox import Inbox
from kvtransfer.pages import new_staging
from kvtransfer.pair import RECEIVER_RANK, Pair, PairBackend
from kvtransfer.socket_store import SocketStore
from kvtransfer.transport import PeerLost
from protocol.errors import UserError

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 2.0
ACCEPT_RETRY_S = 0.1
MAX_FRAME_PAGES = 1 << 16


class DataPortInUse(UserError):
    """The data port is taken."""


class Listener:
    """`counts_of(peer name)` gives the counters of a peer's incoming links."""

    def __init__(
        self,
        host: str,
        port: int,
        hello: Hello,
        backend: PairBackend,
        pool: Tensor,
        inbox: Inbox,
        counts_of: Callable[[str], LinkCounts],
    ) -> None:
        self._hello = hello
        self._backend = backend
        self._pool = pool
        self._inbox = inbox
        self._counts_of = counts_of
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise DataPortInUse(
                f"cannot listen for KV pages on {host}:{port} ({error.strerror}); "
                "choose another port with --data-port"
            ) from error
        self._socket.listen(64)
        self.port = int(self._socket.getsockname()[1])
        self._connections: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="kv-accept", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Harmless twice."""
        self._closing.set()
        if self._socket.fileno() >= 0:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._acceptor.join()
        with self._lock:
            threads = list(self._threads)
            for connection in self._connections:
                _shut(connection)
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                log.error("a connection to the data port failed: %s", error)
                self._closing.wait(ACCEPT_RETRY_S)  # no file left, as a rule
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="kv-from", daemon=True
            )
            with self._lock:
                self._connections.add(connection)
                self._threads = {t for t in self._threads if t.is_alive()} | {thread}
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        """One link, from greeting to end; whatever happens concerns this link alone."""
        try:
            connection.settimeout(HELLO_TIMEOUT_S)
            hello = receive_message(connection, Hello)
            reason = refusal(self._hello, hello)
            if reason:
                log.error("refused KV pages from %s: %s", hello.node, reason)
                send_message(connection, Refused(reason))
                return
            self._receive_all(connection, hello)
        except PeerLost as error:
            log.debug("a connection to the data port ended: %s", error)
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _receive_all(self, connection: socket.socket, hello: Hello) -> None:
        link = object()
        counts = self._counts_of(hello.node.name)
        send_message(connection, Welcome())
        store = SocketStore(connection)
        pair = self._backend.make_pair(store, RECEIVER_RANK)
        store.finish()
        connection.settimeout(None)  # idle is fine; the end of the peer ends the stream
        counts.is_open = True
        try:
            while True:
                self._receive(receive_message(connection, FrameHeader), pair, counts, link)
        except PeerLost as error:
            self._inbox.link_lost(link, f"{hello.node.name}: {error}")
            raise
        finally:
            counts.is_open = False
            pair.close()

    def _receive(self, header: FrameHeader, pair: Pair, counts: LinkCounts, link: object) -> None:
        if not 0 < header.num_pages <= MAX_FRAME_PAGES:
            raise PeerLost(f"the peer announced {header.num_pages} pages")
        self._inbox.announce(header.transfer, link)
        started = time.monotonic()
        staging = new_staging(self._pool, header.num_pages, self._backend.staging_device)
        pair.receive(staging)
        if header.checksum is not None and checksum(staging) != header.checksum:
            counts.failures += 1
            self._inbox.fail(header.transfer, "a page set arrived with a wrong checksum")
            return
        self._inbox.write(header.transfer, header.offset, header.num_pages, staging)
        counts.moved(staging.nbytes, header.num_pages, time.monotonic() - started)


def checksum(staging: Tensor) -> int:
    """CRC-32 of the bytes."""
    return zlib.crc32(staging.cpu().numpy().data)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed by the peer already

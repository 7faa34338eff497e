"""`OutgoingLink`: the sending end to one peer. One thread; connects on first use."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kvtransfer.counts import LinkCounts
from kvtransfer.handshake import (
    FrameHeader,
    Hello,
    Refused,
    Welcome,
    receive_message,
    send_message,
)
from kvtransfer.pair import SENDER_RANK, Pair, PairBackend
from kvtransfer.socket_store import SocketStore
from kvtransfer.transport import LayoutMismatch, OnDone, PeerLost

CONNECT_TIMEOUT_S = 2.0
MAX_STAGED_BYTES = 64 << 20
"""Per peer; a sender that is ahead of the network waits."""


@dataclass(frozen=True)
class Frame:
    """`on_done` only with the last frame of a send."""

    header: FrameHeader
    staging: Tensor
    on_done: OnDone | None


class OutgoingLink:
    """Sends frames in order. After a failure everything queued fails, and the link is over:
    `closed` is True and its owner makes another one."""

    def __init__(
        self,
        peer_address: str,
        hello: Hello,
        backend: PairBackend,
        counts: LinkCounts,
        idle_close_s: float,
    ) -> None:
        self._peer_address = peer_address
        self._hello = hello
        self._backend = backend
        self._counts = counts
        self._idle_close_s = idle_close_s
        self._frames: deque[Frame] = deque()
        self._staged_bytes = 0
        self._changed = threading.Condition()
        self.closed = False
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=f"kv-to-{peer_address}", daemon=True)
        self._thread.start()

    @property
    def usable(self) -> bool:
        """False once it is over, or its peer has closed its end."""
        with self._changed:
            return not (self.closed or self._peer_has_closed())

    def push(self, frame: Frame, timeout_s: float) -> bool:
        """Queues a frame; False if the link is over or stayed full for `timeout_s`."""
        size = frame.staging.nbytes
        with self._changed:
            has_room = self._changed.wait_for(
                lambda: (
                    self.closed
                    or self._staged_bytes == 0
                    or self._staged_bytes + size <= MAX_STAGED_BYTES
                ),
                timeout_s,
            )
            if self.closed or not has_room:
                return False
            self._frames.append(frame)
            self._staged_bytes += size
            self._changed.notify_all()
            return True

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        reason = "the link was closed"
        try:
            if self._wait_for_frame():
                self._serve()
        except (PeerLost, LayoutMismatch) as error:
            self._counts.failures += 1
            reason = f"{self._peer_address}: {error}"
        finally:
            self._counts.is_open = False
            self._fail_all(reason)

    def _serve(self) -> None:
        connection, pair = self._connect()
        try:
            self._connection = connection
            self._counts.is_open = True
            while self._wait_for_frame():
                self._send(connection, pair, self._frames[0])
                with self._changed:
                    frame = self._frames.popleft()
                    self._staged_bytes -= frame.staging.nbytes
                    self._changed.notify_all()
                if frame.on_done is not None:
                    frame.on_done("")
        finally:
            with self._changed:
                self._connection = None
                connection.close()
            pair.close()

    def _connect(self) -> tuple[socket.socket, Pair]:
        host, _, port = self._peer_address.rpartition(":")
        try:
            connection = socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise PeerLost(f"nobody listens there ({error})") from error
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            send_message(connection, self._hello)
            answer: Welcome | Refused = receive_message(connection, Welcome | Refused)  # type: ignore[arg-type]
            if isinstance(answer, Refused):
                raise LayoutMismatch(answer.reason)
            store = SocketStore(connection)
            pair = self._backend.make_pair(store, SENDER_RANK)
            store.finish()
        except BaseException:
            connection.close()
            raise
        return connection, pair

    def _send(self, connection: socket.socket, pair: Pair, frame: Frame) -> None:
        started = time.monotonic()
        send_message(connection, frame.header)
        pair.send(frame.staging)
        seconds = time.monotonic() - started
        self._counts.moved(frame.staging.nbytes, frame.header.num_pages, seconds)

    def _wait_for_frame(self) -> bool:
        """False: the link is to end, closed or idle for too long. Raises PeerLost when the peer
        has closed its end meanwhile."""
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: bool(self._frames) or self.closed, self._idle_close_s
            )
            if self.closed or not arrived:
                self.closed = True
                return False
            if self._peer_has_closed():
                raise PeerLost("the peer closed the link")
        return True

    def _peer_has_closed(self) -> bool:
        """The receiving side never writes after its greeting: readable means the end."""
        connection = self._connection
        return connection is not None and bool(select.select([connection], [], [], 0)[0])

    def _fail_all(self, reason: str) -> None:
        with self._changed:
            self.closed = True
            frames, self._frames = list(self._frames), deque()
            self._changed.notify_all()
        callbacks: list[Callable[[str], None]] = [f.on_done for f in frames if f.on_done]
        for on_done in callbacks:
            on_done(reason)

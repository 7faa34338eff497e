"""`TcpBackend`: pairs over a TCP connection of our own, between any two nodes. Pages of a GPU are
staged in host memory.

The connection goes to the data port of the receiver, and has passed the same challenge as its link.
The bytes of messages follow one another on it without any header: both ends know their sizes, and
a peer that sends more, or less, only ends its own link. The kernel's buffers are what is under way.
"""

from __future__ import annotations

import socket
from collections import deque

import torch
from torch import Tensor
from torch.distributed import Store

from kvtransfer.backends.pair import IsAlive, StreamStore
from kvtransfer.backends.ring import Ring
from kvtransfer.transport import PeerLost


class TcpBackend:
    """Makes pairs over TCP."""

    name = "tcp"
    staging_device = torch.device("cpu")
    message_bytes = 1 << 20
    window = 4
    min_send_bytes = 1 << 20

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def make_pair(
        self, store: Store, rank: int, window: int, buffer_bytes: int, is_peer_alive: IsAlive
    ) -> TcpPair:
        assert isinstance(store, StreamStore), "only a link can open a stream"
        stream = store.open_stream()
        stream.settimeout(self._timeout_s)
        ring = Ring(window, buffer_bytes, self.staging_device)
        return TcpPair(stream, ring, self._timeout_s, is_peer_alive)


class TcpPair:
    """One end of a pair over TCP."""

    def __init__(
        self, stream: socket.socket, ring: Ring, timeout_s: float, is_peer_alive: IsAlive
    ) -> None:
        self._stream = stream
        self._ring = ring
        self._timeout_s = timeout_s
        self._is_peer_alive = is_peer_alive
        self._reserved: Tensor | None = None
        self._posted: deque[Tensor] = deque()

    def reserve(self, num_bytes: int) -> Tensor:
        self._reserved = self._ring.take(num_bytes)
        return self._reserved

    def send(self) -> None:
        """Copies the buffer into the kernel's, and waits while these are full."""
        assert self._reserved is not None
        left = self._reserved.numpy().data
        while left:
            try:
                left = left[self._stream.send(left) :]
            except TimeoutError:
                self._require_alive()
            except OSError as error:
                raise PeerLost(f"the link broke ({error})") from error

    def sent(self) -> None:
        """Does nothing: the buffer was free when `send` returned."""

    def post(self, num_bytes: int) -> None:
        self._posted.append(self._ring.take(num_bytes))

    def received(self) -> Tensor:
        buffer = self._posted.popleft()
        left = buffer.numpy().data
        while left:
            try:
                count = self._stream.recv_into(left)
                if count == 0:
                    raise PeerLost("the peer closed the link")
                left = left[count:]
            except TimeoutError:
                self._require_alive()
            except OSError as error:
                raise PeerLost(f"the link broke ({error})") from error
        return buffer

    def release(self) -> None:
        """Does nothing: the ring hands the buffer out again in its turn."""

    def close(self) -> None:
        try:
            self._stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster
        self._stream.close()

    def _require_alive(self) -> None:
        """Raises PeerLost if the peer is not alive, which has moved no byte for a whole timeout."""
        if not self._is_peer_alive():
            raise PeerLost(f"the peer moved nothing for {self._timeout_s:g} s")

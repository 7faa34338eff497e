"""`SharedMemoryBackend`: pairs through shared memory, between two processes of one host.

The ring of staging buffers lies in memory that both processes map, so a page is copied once into it
and once out of it. The receiver makes the memory as a memfd, which has no name in a file system and
is freed with the last process that maps it, however that ends. It passes it over a Unix socket; on
that socket one byte then says that the next buffer in turn is filled, or in the other direction
that it is empty. The socket's name is in the abstract namespace, which only processes of the same
network namespace can reach: others never try (`Place.host`).
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import uuid
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import Store

from kvtransfer.backends.pair import RECEIVER_RANK, IsAlive
from kvtransfer.transport import PeerLost

_KEY = "shared_memory"
_TOKEN = b"."
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class SharedMemoryBackend:
    """Makes pairs through shared memory. Linux only."""

    name = "shm"
    staging_device = torch.device("cpu")
    message_bytes = 1 << 20
    window = 8
    min_send_bytes = 1 << 18

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def make_pair(
        self, store: Store, rank: int, window: int, buffer_bytes: int, is_peer_alive: IsAlive
    ) -> SharedMemoryPair:
        try:
            if rank == RECEIVER_RANK:
                connection, memory = self._offer(store, window * buffer_bytes, is_peer_alive)
            else:
                connection, memory = self._accept_offer(store, window * buffer_bytes, is_peer_alive)
        except (OSError, RuntimeError) as error:
            raise PeerLost(f"no shared memory could be agreed on ({error})") from error
        return SharedMemoryPair(connection, memory, window, is_peer_alive)

    def _offer(
        self, store: Store, size: int, is_peer_alive: IsAlive
    ) -> tuple[socket.socket, mmap.mmap]:
        """Does the receiver's part: makes `size` bytes of memory and passes them to the sender.

        The store tells the sender the name of the Unix socket. Raises PeerLost or OSError.
        """
        with socket.socket(socket.AF_UNIX) as listener:
            name = f"kvrelay-{uuid.uuid4().hex}"
            listener.bind("\0" + name)
            listener.listen(1)
            listener.settimeout(self._timeout_s)
            store.set(_KEY, name)
            connection, _ = _patiently(listener.accept, is_peer_alive)
        connection.settimeout(self._timeout_s)
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        # An abstract socket has no file permissions: anybody on this host can connect to it.
        if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
            connection.close()
            raise PeerLost("another user's process wanted the shared memory")
        file = os.memfd_create("kvrelay")
        try:
            os.ftruncate(file, size)
            memory = mmap.mmap(file, size)
            socket.send_fds(connection, [_TOKEN], [file])
        finally:
            os.close(file)
        return connection, memory

    def _accept_offer(
        self, store: Store, size: int, is_peer_alive: IsAlive
    ) -> tuple[socket.socket, mmap.mmap]:
        """Does the sender's part: takes the memory that the receiver passes, `size` bytes of it.

        Raises PeerLost, OSError or RuntimeError (from the store).
        """
        name = store.get(_KEY).decode()
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(self._timeout_s)
            connection.connect("\0" + name)
            _, files, _, _ = _patiently(lambda: socket.recv_fds(connection, 1, 1), is_peer_alive)
            if not files:
                raise PeerLost("the peer closed the link")
            try:
                # Writing beyond the end of a mapped file would end this process (SIGBUS).
                if os.fstat(files[0]).st_size != size:
                    raise PeerLost("the peer offered memory of another size")
                return connection, mmap.mmap(files[0], size)
            finally:
                os.close(files[0])
        except BaseException:
            connection.close()
            raise


T = TypeVar("T")


def _patiently(wait: Callable[[], T], is_peer_alive: IsAlive) -> T:
    """Returns what `wait` returns; calls it again after a TimeoutError if the peer lives."""
    while True:
        try:
            return wait()
        except TimeoutError:
            if not is_peer_alive():
                raise


class SharedMemoryPair:
    """One end of a ring of `window` buffers in shared memory.

    The sender's bytes on the socket mean "filled", the receiver's mean "emptied". The sender fills
    a buffer without asking: `sent` has waited for the "emptied" of the message before it there.
    """

    def __init__(
        self,
        connection: socket.socket,
        memory: mmap.mmap,
        window: int,
        is_peer_alive: IsAlive,
    ) -> None:
        self._connection = connection
        self._is_peer_alive = is_peer_alive
        self._memory = torch.frombuffer(memory, dtype=torch.uint8).view(window, -1)
        self._next = 0
        self._posted: deque[Tensor] = deque()

    def reserve(self, num_bytes: int) -> Tensor:
        return self._take(num_bytes)

    def send(self) -> None:
        self._tell()

    def sent(self) -> None:
        self._listen()

    def post(self, num_bytes: int) -> None:
        self._posted.append(self._take(num_bytes))

    def received(self) -> Tensor:
        self._listen()
        return self._posted.popleft()

    def release(self) -> None:
        self._tell()

    def close(self) -> None:
        """Closes the socket, which tells the peer. The memory is freed with its last reference."""
        self._connection.close()

    def _take(self, num_bytes: int) -> Tensor:
        """Returns the next buffer in turn; both ends count the turns alike."""
        buffer = self._memory[self._next]
        self._next = (self._next + 1) % len(self._memory)
        return buffer[:num_bytes]

    def _tell(self) -> None:
        """Tells the peer that a buffer is filled or emptied. Raises PeerLost."""
        try:
            self._connection.sendall(_TOKEN)
        except OSError as error:
            raise PeerLost(f"the peer closed the link ({error})") from error

    def _listen(self) -> None:
        """Waits until the peer has filled or emptied the next buffer. Raises PeerLost."""
        token = self._next_token()
        if not token:
            raise PeerLost("the peer closed the link")

    def _next_token(self) -> bytes:
        """Waits for a byte as long as the peer is alive; returns b"" at the end of the stream."""
        while True:
            try:
                return self._connection.recv(1)
            except TimeoutError as error:
                if not self._is_peer_alive():
                    timeout_s = self._connection.gettimeout()
                    raise PeerLost(f"the peer did nothing for {timeout_s:g} s") from error
            except OSError as error:
                raise PeerLost(f"the link broke ({error})") from error

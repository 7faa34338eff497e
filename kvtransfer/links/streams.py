"""Streams: the second connection of a link, for backends that move bytes over TCP.

    receiver   expects a stream, and names it in the store of the link ──► sender
    sender     connects to the data port, proves the secret, says `StreamOf` that name

The name is a number that nobody can guess, so a stream belongs to the link on which it was told.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import threading

import msgspec

NAME_BYTES = 16
STREAM_KEY = "stream"
"""The key of a stream's name in the store of its link."""


class StreamOf(msgspec.Struct, frozen=True, tag=True):
    """Sender → receiver: the first message on a stream, says which one it is."""

    name: bytes


class ExpectedStreams:
    """The streams that the links of one rank wait for. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[bytes, queue.SimpleQueue[socket.socket]] = {}

    def expect(self) -> bytes:
        """Returns the name of a new stream, which is known until `forget`."""
        name = os.urandom(NAME_BYTES)
        with self._lock:
            self._waiting[name] = queue.SimpleQueue()
        return name

    def wait(self, name: bytes, timeout_s: float) -> socket.socket | None:
        """Returns the stream, which is the caller's to close; None if it does not come in time."""
        try:
            return self._waiting[name].get(timeout=timeout_s)
        except queue.Empty:
            return None

    def forget(self, name: bytes) -> None:
        """Ends the wait for a stream. One that nobody has taken is closed."""
        with self._lock:
            waiting = self._waiting.pop(name)
        while not waiting.empty():
            waiting.get().close()

    def serve(self, name: bytes, connection: socket.socket) -> None:
        """Hands a stream to the link that waits for it, and returns when it is over. One that
        nobody waits for is left alone."""
        with self._lock:
            waiting = self._waiting.get(name)
            if waiting is None:
                return
            waiting.put(connection.dup())
        over = select.poll()
        over.register(connection, select.POLLRDHUP)
        over.poll()

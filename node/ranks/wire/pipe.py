"""The ordered local channel between rank 0 and a worker: length-prefixed msgspec messages on a
socket pair.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import Any, Generic, TypeVar

import msgspec

from protocol.errors import UserError

PATIENCE_S = 60.0
"""For the other end to take or to end a message: as long as a step may keep it busy."""
MAX_MESSAGE_BYTES = 256 << 20
_LENGTH = struct.Struct("<I")
M = TypeVar("M")


class RankLost(UserError):
    """The other end is gone, or does nothing any more."""


class Pipe(Generic[M]):
    """`M`: what comes in. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket, incoming: Any) -> None:
        """`incoming`: M, a union of tagged structs."""
        connection.settimeout(PATIENCE_S)
        self._connection = connection
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._lock = threading.Lock()

    def send(self, message: msgspec.Struct) -> None:
        """Raises RankLost; afterwards the pipe is of no use."""
        with self._lock:
            raw = self._encoder.encode(message)
            try:
                self._connection.sendall(_LENGTH.pack(len(raw)) + raw)
            except OSError as error:
                raise RankLost(f"it took no message ({error})") from error

    def receive(self, timeout_s: float | None = None) -> M:
        """Waits for the beginning of a message; raises RankLost."""
        if not self._readable.poll(None if timeout_s is None else timeout_s * 1_000):
            raise RankLost(f"it said nothing for {timeout_s:g} s")
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise RankLost(f"it announced {length} bytes")
        return self._decoder.decode(self._read(length))

    def close(self) -> None:
        """Also ends a `receive` of another thread, here and at the other end."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other end was faster
        self._connection.close()

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._connection.recv(count - len(parts))
            except OSError as error:
                raise RankLost(f"the pipe broke ({error})") from error
            if not part:
                raise RankLost("it ended")
            parts += part
        return bytes(parts)

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
    """Another rank's process is gone, or does nothing any more."""


class Pipe(Generic[M]):
    """One end of the channel between rank 0 and a worker; `M` is the type of what comes in. Any
    thread may send; only one may receive."""

    def __init__(self, connection: socket.socket, incoming: Any) -> None:
        """`incoming` is M at run time: a union of tagged structs."""
        connection.settimeout(PATIENCE_S)
        self._connection = connection
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._lock = threading.Lock()

    def send(self, message: msgspec.Struct) -> None:
        """Sends a message. Raises RankLost, after which the pipe is of no use."""
        with self._lock:
            raw = self._encoder.encode(message)
            try:
                self._connection.sendall(_LENGTH.pack(len(raw)) + raw)
            except OSError as error:
                raise RankLost(f"it took no message ({error})") from error

    def receive(self, timeout_s: float | None = None) -> M:
        """Waits for the next message and returns it. Raises RankLost, also if none begins within
        `timeout_s`."""
        if not self._readable.poll(None if timeout_s is None else timeout_s * 1_000):
            raise RankLost(f"it said nothing for {timeout_s:g} s")
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise RankLost(f"it announced {length} bytes")
        raw = self._read(length)
        try:
            return self._decoder.decode(raw)
        except (ValueError, RecursionError) as error:
            raise RankLost(f"it said what makes no sense ({error})") from error

    def close(self) -> None:
        """Closes this end. That also ends a `receive` that waits on another thread, here or at the
        other end."""
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

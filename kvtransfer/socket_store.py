"""`SocketStore`: the two ranks of a link exchange what a process group needs over their socket.

torch's TCPStore would do it, with one more port and server thread per node; but its teardown
within one process made other stores time out (see docs/decisions/0004).
"""

from __future__ import annotations

import socket
from datetime import timedelta

import msgspec
from torch.distributed import Store

from kvtransfer.handshake import receive_message, send_message


class StoreEntry(msgspec.Struct, frozen=True, tag=True):
    """One `set` of the other rank."""

    key: str
    value: bytes


class Paired(msgspec.Struct, frozen=True, tag=True):
    """This rank has its process group; what follows on the socket is frames."""


class SocketStore(Store):
    """Key-value store of exactly two ranks; the socket's timeout bounds every wait.

    Raises PeerLost, which arrives in C++ callers' Python code as a RuntimeError.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes | str) -> None:
        raw = value.encode() if isinstance(value, str) else bytes(value)
        self._values[key] = raw
        send_message(self._connection, StoreEntry(key, raw))

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        while not self.check(keys):
            entry = receive_message(self._connection, StoreEntry)
            self._values[entry.key] = entry.value

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)

    def finish(self) -> None:
        """Both ranks call it when their group is made: the socket is then empty on both sides."""
        send_message(self._connection, Paired())
        while True:
            message: StoreEntry | Paired = receive_message(
                self._connection,
                StoreEntry | Paired,  # type: ignore[arg-type]
            )
            if isinstance(message, Paired):
                return

"""`SocketStore`: the two ranks of a link exchange what a process group needs over their socket.

torch's TCPStore would do it, with one more port and server thread per node; but its teardown
within one process made other stores time out (see docs/decisions/0004).
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta

import msgspec
from torch.distributed import Store

from kvtransfer.links.handshake import receive_message, send_message
from kvtransfer.transport import PeerLost


class StoreEntry(msgspec.Struct, frozen=True, tag=True):
    """One `set` of the other rank."""

    key: str
    value: bytes


class Paired(msgspec.Struct, frozen=True, tag=True):
    """This rank has its process group; what follows on the socket is frames."""


MAX_ENTRIES = 256


class SocketStore(Store):
    """Key-value store of exactly two ranks. All its waits together have one deadline.

    Raises PeerLost, which arrives in C++ callers' Python code as a RuntimeError.
    """

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        super().__init__()
        self._connection = connection
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
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
            if not isinstance(message := self._next(), StoreEntry):
                raise PeerLost("the peer made its pair without us")
            self._values[message.key] = message.value

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)

    def finish(self) -> None:
        """Both ranks call it when their group is made: the socket is then empty on both sides."""
        send_message(self._connection, Paired())
        while not isinstance(self._next(), Paired):
            pass

    def _next(self) -> StoreEntry | Paired:
        """What the other rank says next."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0 or len(self._values) > MAX_ENTRIES:
            raise PeerLost(f"no pair was made within {self._timeout_s:g} s")
        self._connection.settimeout(left_s)
        message: StoreEntry | Paired = receive_message(
            self._connection,
            StoreEntry | Paired,  # type: ignore[arg-type]
        )
        return message

"""`SocketStore`: the key-value store that a process group needs to find its peer, over a socket.

torch's TCPStore would do it, with one more port and server thread per node; but its teardown
within one process made other stores time out (see docs/decisions/0004). A store is used for one
pair only, so it never has the stale keys on which the next pair of a shared store would fail.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import timedelta

import msgspec
from torch.distributed import Store

from kvtransfer.links.handshake import nobody_knows, receive_message, send_message
from kvtransfer.transport import PeerLost


class StoreEntry(msgspec.Struct, frozen=True, tag=True):
    """One rank → the other: the sender has called `set` with this key and value."""

    key: str
    value: bytes


class Paired(msgspec.Struct, frozen=True, tag=True):
    """One rank → the other: the sender has made its pair and sends no more entries."""


MAX_ENTRIES = 256
"""The most entries that a store takes from its peer."""


class SocketStore(Store):
    """A key-value store of exactly two ranks, called by torch's C++ code.

    Methods that wait raise PeerLost. Where C++ called them, its caller gets a RuntimeError.
    """

    def __init__(
        self,
        connection: socket.socket,
        timeout_s: float,
        is_peer_alive: Callable[[], bool] = nobody_knows,
    ) -> None:
        """All waits together may take `timeout_s`, counted from now, and anew whenever that is over
        and the peer lives."""
        super().__init__()
        self._connection = connection
        self._is_peer_alive = is_peer_alive
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes | str) -> None:
        """Stores a value here and sends it to the other rank."""
        raw = value.encode() if isinstance(value, str) else bytes(value)
        self._values[key] = raw
        send_message(self._connection, StoreEntry(key, raw))

    def get(self, key: str) -> bytes:
        """Returns the value of `key`; waits until the other rank has set it."""
        self.wait([key])
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Waits until all `keys` are set. `timeout` is torch's and ignored: the store has one
        deadline for everything."""
        while not self.check(keys):
            if not isinstance(message := self._next(), StoreEntry):
                raise PeerLost("the peer made its pair without us")
            self._values[message.key] = message.value

    def check(self, keys: list[str]) -> bool:
        """Returns True if all `keys` are set. Does not wait."""
        return all(key in self._values for key in keys)

    def finish(self) -> None:
        """Waits until the other rank has made its pair too. Both ranks must call it.

        Afterwards no entry is left on the socket, so that frame headers can follow.
        """
        send_message(self._connection, Paired())
        while not isinstance(self._next(), Paired):
            pass

    def _next(self) -> StoreEntry | Paired:
        """Waits for the next message of the other rank and returns it. Raises PeerLost at the
        store's deadline, and if the other rank has sent too many entries."""
        is_late = time.monotonic() >= self._deadline and not self._is_held_up()
        if is_late or len(self._values) > MAX_ENTRIES:
            raise PeerLost(f"no pair was made within {self._timeout_s:g} s")
        self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
        message: StoreEntry | Paired = receive_message(
            self._connection,
            StoreEntry | Paired,  # type: ignore[arg-type]
            self._is_held_up,
        )
        return message

    def _is_held_up(self) -> bool:
        """Returns True if the peer lives; the deadline then begins anew."""
        if self._is_peer_alive():
            self._deadline = time.monotonic() + self._timeout_s
            return True
        return False

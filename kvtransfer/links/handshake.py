"""What two transports say on the socket of a link: greeting, then a header before each frame.

Length-prefixed msgspec messages. The socket also tells at once when the peer's process ends, and
pings tell within two seconds when it is cut off.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from kvtransfer.pages.layout import FrameShape, Shard
from kvtransfer.transport import PeerLost
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout

VERSION = 2
MAX_MESSAGE_BYTES = 64 << 10
MAX_PAIR_MESSAGE_BYTES = 1 << 30
MAX_WINDOW = 256
PAIR_TIMEOUT_S = 4.0
"""To make a pair. The first NCCL pair of a process takes a second."""
PING_S = 0.5
"""A sender that has nothing to send says so this often."""
SILENCE_S = 1.8
"""An end of an idle link that hears nothing for so long takes the other one for lost."""
_LENGTH = struct.Struct("<I")


class Place(msgspec.Struct, frozen=True):
    """Where a rank runs, which decides how it can be reached."""

    host: str
    """The same for processes that can share memory."""
    gpu: str = ""
    """UUID of its CUDA device; "" without one."""


class Hello(msgspec.Struct, frozen=True):
    """Sender → receiver, first. `to` is the shard that it takes the receiver for."""

    version: int
    node: Node
    layout: KVLayout
    fingerprint: str
    shard: Shard
    to: Shard
    place: Place
    backends: list[str]
    """What the sender can use, best first."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Receiver → sender: make the pair, with this backend.

    Both ends cut frames as the receiver says: a message longer than what is posted for it would
    end the receiving process over gloo.
    """

    node: Node
    backend: str
    message_bytes: int
    window: int

    @property
    def is_sane(self) -> bool:
        return 0 < self.message_bytes <= MAX_PAIR_MESSAGE_BYTES and 0 < self.window <= MAX_WINDOW


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Receiver → sender: no link, and why."""

    reason: str


class FrameHeader(msgspec.Struct, frozen=True, tag=True):
    """Sender → receiver: the next frame on the pair."""

    transfer: Attempt
    shape: FrameShape
    has_checksums: bool
    """Every message ends with `CHECKSUM_BYTES`."""


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Sender → receiver: the link is idle and alive."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """Receiver → sender: the answer to a `Ping`."""


class Bye(msgspec.Struct, frozen=True, tag=True):
    """Sender → receiver: the link ends as it should."""


M = TypeVar("M")


def send_message(connection: socket.socket, message: msgspec.Struct) -> None:
    """Raises PeerLost."""
    raw = msgspec.msgpack.encode(message)
    try:
        connection.sendall(_LENGTH.pack(len(raw)) + raw)
    except OSError as error:
        raise PeerLost(f"the peer closed the link ({error})") from error


def receive_message(connection: socket.socket, kind: type[M]) -> M:
    """Raises PeerLost on the end of the stream, garbage, or a message that takes longer than the
    socket's timeout; it waits at most twice that time."""
    (length,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    if length > MAX_MESSAGE_BYTES:
        raise PeerLost(f"the peer announced {length} bytes: it is no kvrelay node")
    try:
        return msgspec.msgpack.decode(_receive_exactly(connection, length), type=kind)
    except msgspec.DecodeError as error:
        raise PeerLost(f"the peer sent garbage ({error})") from error


def refusal(mine: Hello, theirs: Hello) -> str:
    """Why these two must not exchange pages; "" when they may. `mine.shard` is the receiver's."""
    if mine.version != theirs.version:
        return f"kvtransfer version {mine.version} here, {theirs.version} there"
    if mine.layout != theirs.layout:
        return f"KV layouts differ: {mine.layout.differences(theirs.layout)}"
    if mine.fingerprint != theirs.fingerprint:
        return "the nodes serve different weights"
    if mine.shard != theirs.to:
        return (
            f"this is rank {mine.shard.rank} of {mine.shard.num_ranks}, "
            f"not {theirs.to.rank} of {theirs.to.num_ranks}"
        )
    return ""


def choose_backend(mine: Hello, theirs: Hello) -> str:
    """The first that the sender wants and both can use between them; "" if there is none."""
    return next(
        (b for b in theirs.backends if b in mine.backends and _reaches(b, mine, theirs)), ""
    )


def no_backend(mine: Hello, theirs: Hello) -> str:
    """Why `choose_backend` found none."""
    return (
        f"no common way for pages: {_listed(mine.backends)} here, {_listed(theirs.backends)} "
        "there; shm needs one host, nccl two GPUs; set --kv-backend auto"
    )


def _reaches(backend: str, mine: Hello, theirs: Hello) -> bool:
    if backend == "shm":
        return mine.place.host == theirs.place.host
    if backend == "nccl":
        return "" != mine.place.gpu != theirs.place.gpu != ""
    return True


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names) or "none"


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    parts, timeout_s = bytearray(), connection.gettimeout()
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while len(parts) < count:
        if deadline is not None and time.monotonic() > deadline:
            raise PeerLost(f"the peer did not end a message within {timeout_s:g} s")
        try:
            part = connection.recv(count - len(parts))
        except TimeoutError as error:
            raise PeerLost(f"the peer was silent for {connection.gettimeout():g} s") from error
        except OSError as error:
            raise PeerLost(f"the link broke ({error})") from error
        if not part:
            raise PeerLost("the peer closed the link")
        parts += part
    return bytes(parts)

"""What two transports say on the socket of a link: greeting, then a header before each frame.

Length-prefixed msgspec messages. The socket also tells at once when the peer's process ends.
"""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

import msgspec

from kvtransfer.transport import PeerLost
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout

VERSION = 1
MAX_MESSAGE_BYTES = 64 << 10
_LENGTH = struct.Struct("<I")


class Hello(msgspec.Struct, frozen=True):
    """Sender → receiver, first."""

    version: int
    node: Node
    layout: KVLayout
    fingerprint: str
    backend: str


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Receiver → sender: make the pair."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Receiver → sender: no link, and why."""

    reason: str


class FrameHeader(msgspec.Struct, frozen=True, array_like=True):
    """Sender → receiver: the next frame on the pair. `checksum` None: not asked for."""

    transfer: Attempt
    offset: int
    num_pages: int
    checksum: int | None


M = TypeVar("M")


def send_message(connection: socket.socket, message: msgspec.Struct) -> None:
    """Raises PeerLost."""
    raw = msgspec.msgpack.encode(message)
    try:
        connection.sendall(_LENGTH.pack(len(raw)) + raw)
    except OSError as error:
        raise PeerLost(f"the peer closed the link ({error})") from error


def receive_message(connection: socket.socket, kind: type[M]) -> M:
    """Raises PeerLost on the end of the stream, a timeout of the socket, or garbage."""
    (length,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    if length > MAX_MESSAGE_BYTES:
        raise PeerLost(f"the peer announced {length} bytes: it is no kvrelay node")
    try:
        return msgspec.msgpack.decode(_receive_exactly(connection, length), type=kind)
    except msgspec.DecodeError as error:
        raise PeerLost(f"the peer sent garbage ({error})") from error


def refusal(mine: Hello, theirs: Hello) -> str:
    """Why these two must not exchange pages; "" when they may."""
    if mine.version != theirs.version:
        return f"kvtransfer version {mine.version} here, {theirs.version} there"
    if mine.layout != theirs.layout:
        return f"KV layouts differ: {mine.layout.differences(theirs.layout)}"
    if mine.fingerprint != theirs.fingerprint:
        return "the nodes serve different weights"
    if mine.backend != theirs.backend:
        return f"backend {mine.backend} here, {theirs.backend} there; set --kv-backend alike"
    return ""


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        try:
            part = connection.recv(count - len(parts))
        except OSError as error:
            raise PeerLost(f"the link broke ({error})") from error
        if not part:
            raise PeerLost("the peer closed the link")
        parts += part
    return bytes(parts)

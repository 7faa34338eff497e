"""Bytes that a peer might send which is broken, hostile or of another version."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

TIMEOUT_S = 5.0
LENGTH = struct.Struct("<I")


@contextmanager
def hearing(raw: bytes) -> Iterator[socket.socket]:
    """An end of a connection on which the other end has said `raw`, and will say no more."""
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(TIMEOUT_S)
        there.sendall(raw)
        there.shutdown(socket.SHUT_WR)
        yield here


def spliced(raw: bytes, begin: int, end: int, new: bytes) -> bytes:
    """`raw` with `new` in place of what lies between two places, in whatever order these are."""
    first, last = sorted((begin % (len(raw) + 1), end % (len(raw) + 1)))
    return raw[:first] + new + raw[last:]


def with_length(raw: bytes) -> bytes:
    """As messages lie on sockets."""
    return LENGTH.pack(len(raw)) + raw


def joined(messages: Sequence[bytes]) -> bytes:
    return b"".join(map(with_length, messages))

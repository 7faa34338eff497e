"""`Board`: memory that a node's main process writes and its companion reads, without a lock.

    stamp │ number │ slot 0: length, checksum, bytes │ slot 1: length, checksum, bytes

The message with number n lies in slot n modulo 2, and the number is written after the message, so
the writer may be held up anywhere and the reader still has the message before. The checksum tells
when the writer has overtaken a slow reader, or when another processor sees the writes in another
order.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib

SLOT_BYTES = 1 << 20
"""The longest message. The system gives no memory for what is never written."""
MAX_TRIES = 1_000
_HEAD = struct.Struct("<qQ")
_STAMP = struct.Struct("<q")
_NUMBER = struct.Struct("<Q")
_MESSAGE = struct.Struct("<II")
_SIZE = _HEAD.size + 2 * (_MESSAGE.size + SLOT_BYTES)


class Board:
    """A time stamp and the newest message, in memory that two processes map. One of them writes."""

    def __init__(self, file: int) -> None:
        """Maps the memory in `file`, which stays open; see `create`."""
        self._memory = mmap.mmap(file, _SIZE)
        self._number = 0

    @classmethod
    def create(cls) -> tuple[Board, int]:
        """Returns an empty board, and the file by which another process reaches it."""
        file = os.memfd_create("kvrelay-liveness")
        os.ftruncate(file, _SIZE)
        return cls(file), file

    def stamp(self, now_ns: int) -> None:
        """Notes a time, in nanoseconds of the monotonic clock. Costs less than a microsecond."""
        _STAMP.pack_into(self._memory, 0, now_ns)

    @property
    def stamped_ns(self) -> int:
        """The time that was noted last; 0 before the first one."""
        return int(_STAMP.unpack_from(self._memory, 0)[0])

    def write(self, message: bytes) -> None:
        """Puts a message in place of the one before."""
        assert len(message) <= SLOT_BYTES, f"a message of {len(message)} bytes"
        self._number += 1
        place = _place(self._number)
        _MESSAGE.pack_into(self._memory, place, len(message), zlib.crc32(message))
        begin = place + _MESSAGE.size
        self._memory[begin : begin + len(message)] = message
        _NUMBER.pack_into(self._memory, _STAMP.size, self._number)

    def read(self) -> bytes | None:
        """Returns the newest message; None if there is none yet, or if the writer has overtaken
        every try to read it."""
        for _ in range(MAX_TRIES):
            number = int(_NUMBER.unpack_from(self._memory, _STAMP.size)[0])
            if number == 0:
                return None
            place = _place(number)
            length, checksum = _MESSAGE.unpack_from(self._memory, place)
            begin = place + _MESSAGE.size
            message = self._memory[begin : begin + min(length, SLOT_BYTES)]
            if zlib.crc32(message) == checksum:
                return message
        return None


def _place(number: int) -> int:
    return _HEAD.size + (number % 2) * (_MESSAGE.size + SLOT_BYTES)

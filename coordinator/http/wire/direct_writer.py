"""`DirectWriter`: writes parts of a response's body to the connection without a coroutine.

ASGI's `send` is awaited by a task, and to wake one for every token of a stream costs more than the
writing. Whoever has a part at hand may write it here from any callback, as long as the client
reads; when it does not, only `send` can wait for it.
"""

from __future__ import annotations

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

KEY = "kvrelay.direct_writer"
"""Where the writer is kept in the scope of a request."""


class DirectWriter:
    """Writes to the connection of one request, between the `send`s of its handler."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write

    @property
    def writes_chunks(self) -> bool:
        """True once the head is sent, unless it told a length: then a part is no chunk."""
        return self._cycle.chunked_encoding is True

    @property
    def is_open(self) -> bool:
        """True if a chunk may be written now: the client is there, and reads what it gets."""
        return not self._flow.write_paused and not self._cycle.disconnected

    def write(self, part: bytes) -> None:
        """Writes a part of the body, which is not empty, as a chunk. The writer must be open."""
        self._write(b"%x\r\n%b\r\n" % (len(part), part))


def direct_writer(scope: Scope) -> DirectWriter | None:
    """Returns the writer of a request; None if its server offers none."""
    writer: DirectWriter | None = scope.get(KEY)
    return writer

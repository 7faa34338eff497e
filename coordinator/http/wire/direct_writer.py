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
    def is_open(self) -> bool:
        """True if a part may be written now: the head is sent, the body has no known length, and
        the client reads what it gets."""
        cycle = self._cycle
        return (
            not self._flow.write_paused
            and bool(cycle.chunked_encoding)
            and not cycle.disconnected
            and not cycle.response_complete
        )

    def write(self, part: bytes) -> None:
        """Writes a part of the body, which is not empty, as a chunk. The writer must be open."""
        self._write(b"%x\r\n%b\r\n" % (len(part), part))


def direct_writer(scope: Scope) -> DirectWriter | None:
    """Returns the writer of a request; None if its server offers none."""
    writer: DirectWriter | None = scope.get(KEY)
    return writer

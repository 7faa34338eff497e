"""Bounds for what one connection may cost: a head without an end, and a client that never reads."""

from __future__ import annotations

import asyncio
import logging

from coordinator.http.wire.until_close import UntilCloseProtocol

MAX_HEAD_BYTES = 1 << 16
"""The most bytes of a request's head, which is kept until all of it is there."""


log = logging.getLogger(__name__)


class BoundedProtocol(UntilCloseProtocol):
    """uvicorn's protocol, which by itself would keep any head and wait for any reader."""

    _num_unread_bytes = 0
    """Bytes that came since the last part of a body, or the last request, was whole."""
    stall_client_s = 60.0
    """A client that reads nothing for so long, while there is much to read, is taken for lost."""
    _stall: asyncio.TimerHandle | None = None
    """Ends the connection unless the client reads before."""

    def data_received(self, data: bytes) -> None:
        """Takes what comes. A request whose head does not end is refused, and so are lines without
        an end behind a body."""
        self._num_unread_bytes += len(data)
        super().data_received(data)
        if self._num_unread_bytes <= MAX_HEAD_BYTES or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"The head of a request has {MAX_HEAD_BYTES} bytes at most.")
        else:
            self.transport.close()  # nothing can come between the parts of a response

    def on_body(self, body: bytes) -> None:
        """Takes a part of a body."""
        self._num_unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends a request."""
        self._num_unread_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Begins to wait for a client that does not read."""
        super().pause_writing()
        self._end_stall()
        self._stall = self.loop.call_later(self.stall_client_s, self._give_up)

    def resume_writing(self) -> None:
        """Goes on: the client reads."""
        self._end_stall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting, then everything that the connection was for."""
        self._end_stall()
        super().connection_lost(exc)

    def client_stalled(self) -> None:
        """Is told of a client that is given up. A server may do more than log it."""
        log.warning("a client has read nothing for %g s, and is given up", self.stall_client_s)

    def _give_up(self) -> None:
        self.client_stalled()
        self.transport.abort()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

"""Connections whose client closes its sending side after its request, and waits for the answer.

A client that has left and one that only half-closed look the same: a FIN has come. What tells them
apart is what happens to bytes that are sent: the system of a client that has left refuses them, and
the next write fails. So after a FIN the answer goes on, and while there is nothing to send, bytes
that every client skips are: the interim response "100 Continue" before the head of the response,
and a comment within a stream of events.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from coordinator.http.wire.bounded import BoundedProtocol
from coordinator.http.wire.direct_writer import KEY as DIRECT_WRITER
from coordinator.http.wire.direct_writer import DirectWriter

PROBE_AFTER_S = 1.0
"""An answer that comes sooner than this after the FIN is sent with no probe before it."""
SECOND_PROBE_AFTER_S = 0.05
"""By then the client's system has refused the first probe, if it does so."""
INTERIM_RESPONSE = b"HTTP/1.1 100 Continue\r\n\r\n"
COMMENT = b":\n\n"


class HalfClosingProtocol(BoundedProtocol):
    """uvicorn's protocol with bounds, an answer for clients that have closed their sending side,
    and a `DirectWriter` for each request."""

    _probe: asyncio.TimerHandle | None = None

    def on_headers_complete(self) -> None:
        """Begins a request, whose handler may write parts of its response directly."""
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is not None and cycle.scope is self.scope:  # not so if it was an upgrade
            cycle.scope[DIRECT_WRITER] = DirectWriter(cycle)  # type: ignore[literal-required]

    def eof_received(self) -> bool:  # type: ignore[override]
        """Returns True, which keeps the connection open, if there is still something to send."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False  # nothing can come after it
        self._probe = self.loop.call_later(PROBE_AFTER_S, self._look, SECOND_PROBE_AFTER_S)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the looking, then everything that the connection was for."""
        if self._probe is not None:
            self._probe.cancel()
        super().connection_lost(exc)

    def _look(self, next_in_s: float) -> None:
        """Sends a probe, if the answer has nothing to send for now, and plans the next one."""
        if self.transport.is_closing():
            return
        if not self.pipeline and (probe := _probe_of(self.cycle)):
            self.transport.write(probe)
        self._probe = self.loop.call_later(next_in_s, self._look, PROBE_AFTER_S)


def _probe_of(cycle: RequestResponseCycle) -> bytes:
    """Returns bytes that the client of this exchange skips; none if there are no such."""
    if cycle.response_complete or cycle.scope["http_version"] != "1.1":
        return b""
    if not cycle.response_started:
        return INTERIM_RESPONSE
    if cycle.chunked_encoding:
        return b"%x\r\n%b\r\n" % (len(COMMENT), COMMENT)
    return b""

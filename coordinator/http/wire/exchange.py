"""`Exchange`: the response to one HTTP request, written to ASGI itself."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Send

from coordinator.http.errors import INTERNAL_ERROR, NATIVE_ERRORS, ErrorForm
from coordinator.http.replies import error_reply
from coordinator.http.wire.direct_writer import DirectWriter
from coordinator.http.wire.request_ids import HEADER
from coordinator.timelines.arrival import Arrival

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class Exchange:
    """The response to one HTTP request, which has one start and carries its X-Request-Id."""

    def __init__(
        self,
        arrival: Arrival,
        send: Send,
        writer: DirectWriter | None = None,
        errors: ErrorForm = NATIVE_ERRORS,
    ) -> None:
        """`arrival` names the request. `writer` is what the server offers to write parts of the
        body without waiting; `errors` is the dialect's form of errors."""
        self.arrival = arrival
        self.send = send
        self._writer = writer
        self._errors = errors
        self.has_started = False
        """The head has been sent: nothing else can be its status any more."""

    @property
    def request_id(self) -> str:
        """The X-Request-Id of the response."""
        return self.arrival.http_id

    async def start(self, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        """Sends the head of the response."""
        self.has_started = True
        with_id = [*headers, (HEADER, self.request_id.encode("ascii"))]
        await self.send({"type": "http.response.start", "status": status, "headers": with_id})

    @property
    def direct_writer(self) -> DirectWriter | None:
        """What writes events of the stream, which has begun, without waiting; None if only `send`
        does. Any callback may use it between the `send`s of the handler."""
        writer = self._writer
        return writer if writer is not None and writer.writes_chunks else None

    async def send_event(self, event: bytes) -> None:
        """Sends one or more events of a stream; waits for a client that does not read."""
        await self.send({"type": "http.response.body", "body": event, "more_body": True})

    async def send_json(self, body: Any) -> None:
        """Sends a whole response of status 200."""
        raw = msgspec.json.encode(body)
        await self.start(JSON, (b"content-length", b"%d" % len(raw)))
        await self.send({"type": "http.response.body", "body": raw})

    async def end(self, events: bytes) -> None:
        """Sends the end of a stream that has started."""
        await self.send({"type": "http.response.body", "body": events})

    async def reply(self, response: Response) -> None:
        """Sends a whole response."""
        await self.start(*response.raw_headers, status=response.status_code)
        await self.send({"type": "http.response.body", "body": response.body})

    async def fail(self) -> None:
        """Ends the response with an error of our own: as its status, or as the last event of a
        stream that has begun."""
        if not self.has_started:
            return await self.reply(error_reply(500, INTERNAL_ERROR, form=self._errors))
        await self.end(self._errors.last_events(500, INTERNAL_ERROR))

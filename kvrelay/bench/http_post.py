"""One POST over a connection of its own, as light as it can be made: asyncio, and httptools to
parse. General clients of HTTP cost several times as much per event, and a generator that is busy
measures itself."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from protocol.config import ConfigError

MAX_ERROR_BYTES = 4096
DONE = b"[DONE]"


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    base_path: str
    is_secure: bool
    api_key: str
    headers: tuple[str, ...] = ()
    """More lines of the head, as `X-Key: 1`."""

    @classmethod
    def parse(cls, url: str, api_key: str) -> Target:
        """Reads a URL of a server, with or without a final /v1. Raises ConfigError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"--url is {url!r}; it must begin with http:// or https://, as "
                "http://127.0.0.1:30000"
            )
        is_secure = parts.scheme == "https"
        base_path = parts.path.rstrip("/").removesuffix("/v1")
        port = parts.port or (443 if is_secure else 80)
        return cls(parts.hostname, port, base_path, is_secure, api_key)

    def request(self, path: str, body: bytes) -> bytes:
        """Returns the bytes of a POST. The server is told to close after its answer."""
        head = [
            f"POST {self.base_path}{path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *self.headers,
        ]
        if self.api_key:
            head.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join([*head, "", ""]).encode() + body


class HttpPost(asyncio.Protocol):
    """Sends a request and hands on the data of each event as it comes.

    `status` becomes the status of the answer at its end, or fails with ConnectionError.
    `error_body` has the beginning of an answer that is no 200.
    """

    def __init__(self, request: bytes, on_event: Callable[[bytes], None]) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.error_body = b""
        self._request = request
        self._on_event = on_event
        self._parser = httptools.HttpResponseParser(self)
        self._line = b""

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the server closed the connection before the end of its answer")

    def on_body(self, body: bytes) -> None:
        """Cuts the body into lines (a callback of the parser)."""
        if self._parser.get_status_code() != 200:
            self.error_body = (self.error_body + body)[:MAX_ERROR_BYTES]
            return
        *lines, self._line = (self._line + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (event := line[5:].strip()) != DONE:
                self._on_event(event)

    def on_message_complete(self) -> None:
        """Tells that the answer has ended (a callback of the parser)."""
        if not self.status.done():
            self.status.set_result(self._parser.get_status_code())

    def _fail(self, reason: str) -> None:
        if not self.status.done():
            self.status.set_exception(ConnectionError(reason))


async def post(
    target: Target, path: str, body: bytes, on_event: Callable[[bytes], None]
) -> tuple[int, bytes]:
    """Posts `body`; returns the status, and the beginning of a body that is no 200. Raises
    OSError. An exception of `on_event` is one of the event loop: it must not raise."""
    loop = asyncio.get_running_loop()
    transport, exchange = await loop.create_connection(
        lambda: HttpPost(target.request(path, body), on_event),
        target.host,
        target.port,
        ssl=ssl.create_default_context() if target.is_secure else None,
    )
    try:
        return await exchange.status, exchange.error_body
    finally:
        transport.abort()  # also when it was cancelled: the server shall stop then

"""Responses to clients of HTTP/1.0, which do not know chunks (RFC 9112, 6.1).

Where such a response has no length, its body ends with the connection.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from coordinator.http.wire.upgrades import SameProtocol


class UntilCloseProtocol(SameProtocol):
    """uvicorn's protocol, which by itself sends chunks to every client."""

    def on_headers_complete(self) -> None:
        """Begins a request, whose response may have to be without chunks."""
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            return  # the head offers an upgrade, and is read once more
        if cycle.scope["http_version"] == "1.0":
            cycle.chunked_encoding = False
            cycle.expected_content_length = UNTIL_CLOSE


class _AnyLength(int):
    """A length of which nothing is too much or too little: bodies are not measured by it."""

    def __sub__(self, num_bytes: int) -> int:
        return self

    def __ne__(self, num_bytes: object) -> bool:
        return False

    def __eq__(self, num_bytes: object) -> bool:
        return True

    __hash__ = int.__hash__


UNTIL_CLOSE = _AnyLength(1 << 62)

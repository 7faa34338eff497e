"""Connections on which another protocol is offered, and HTTP/1.1 is spoken all the same.

Java's HttpClient, for one, offers HTTP/2 with its first request: `Connection: Upgrade`, with
`Upgrade: h2c`. A server may go on as if it had not (RFC 9110, 7.8). The parser stops behind such
a head, though, and takes what follows for the other protocol: the body would be lost.
"""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class SameProtocol(HttpToolsProtocol):
    """uvicorn's protocol, without upgrades: the parser reads a head that offers one once more,
    without the offer, and goes on with the body."""

    def data_received(self, data: bytes) -> None:
        """Takes what comes."""
        self._unset_keepalive_if_required()
        rest = data
        while rest:
            rest = self._rest_of(rest)

    def _rest_of(self, data: bytes) -> bytes:
        """Parses `data` up to the end of a head that offers an upgrade. Returns that head without
        the offer, and what follows it; nothing if all was parsed."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._is_offer():
                return self._head_without_offer() + data[offer.args[0] :]
            self.send_400_response("There is no tunnel through this server.")
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
        return b""

    def on_headers_complete(self) -> None:
        """Begins a request, unless its head is going to be read once more."""
        if not self._is_offer():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Ends a request, unless only its head was read, which is going to be read once more."""
        if not self._is_offer():
            super().on_message_complete()

    def _is_offer(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

"""Reads the body of an HTTP request, and no more of it than is taken."""

from __future__ import annotations

from starlette.types import Receive, Scope

from coordinator.http.errors import BadRequest, BodyTooLarge, ClientLeft

AS_IT_IS = (b"", b"identity")
"""Values of Content-Encoding that say that the body is not compressed."""


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Returns the body. Raises BadRequest if it is compressed, ClientLeft, or BodyTooLarge: before
    anything is read if the client told the length, else as soon as there is more."""
    length = encoding = b""
    for key, value in scope["headers"]:
        if key == b"content-length":
            length = value
        elif key == b"content-encoding":
            encoding = value.strip().lower()
    if encoding not in AS_IT_IS:
        raise BadRequest(
            f"the body has the Content-Encoding {encoding.decode('latin-1')!r}; send it "
            "uncompressed, without that header"
        )
    if length.isdigit() and int(length) > max_bytes:
        raise BodyTooLarge(max_bytes)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise BodyTooLarge(max_bytes)
    return bytes(body)

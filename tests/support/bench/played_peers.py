"""Servers that play a peer: they note what they are asked, and answer what they are told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Reply = int | Json | list[Json]
"""A status other than 200, one document, or the events of a stream."""


class PlayedServer:
    """Answers each POST with `reply(path, body)`. Use it as an asynchronous context manager."""

    def __init__(self, reply: Callable[[str, Json], Reply]) -> None:
        self.bodies: list[Json] = []
        self.port = 0
        self._reply = reply

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> PlayedServer:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = (line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
        body = json.loads(await reader.readexactly(int(length.split(b":")[1])))
        self.bodies.append(body)
        reply = self._reply(head.split(b" ", 2)[1].decode(), body)
        status = reply if isinstance(reply, int) else 200
        events = reply if isinstance(reply, list) else []
        streamed = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
        whole = json.dumps(reply).encode()
        content = streamed + b"data: [DONE]\n\n" if isinstance(reply, list) else whole
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode())
        writer.write(content)
        await writer.drain()
        writer.close()

"""The whole HTTP server before a decode node that is only a channel, and raw sockets to talk to
it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.http.server import HttpServer, listen
from coordinator.service import Service
from infra.models import EMBEDDED
from infra.ports import free_port
from protocol.channel import Channel
from protocol.messages import Generate, TokenOut, TokensOut
from tests.support.coordinator.nodes import heartbeat
from tests.support.coordinator.services import D0, DEADLINE_S, received


@dataclass
class Reply:
    """A response as it came over the socket."""

    status: int
    headers: dict[str, str]
    body: bytes
    interim: int = 0
    """How many interim responses came before it."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.json["error"])

    @property
    def events(self) -> list[str]:
        """What follows `data: ` in a stream of events."""
        lines = self.body.decode().splitlines()
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


@dataclass
class Connection:
    """One client connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> None:
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(raw)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + raw)

    async def reply(self, method: str = "GET") -> Reply:
        return await asyncio.wait_for(self._reply(method), DEADLINE_S)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.send(method, path, body, names)
        return await self.reply(method)

    async def at_end(self) -> bool:
        """Waits until the server closes."""
        return await asyncio.wait_for(self.reader.read(), DEADLINE_S) == b""

    async def _reply(self, method: str) -> Reply:
        interim = 0
        while True:
            status, headers = await self._head()
            if status != 100:
                break
            interim += 1
        body = b""
        if method != "HEAD" and headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readline()
        elif method != "HEAD":
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Reply(status, headers, body, interim)

    async def _head(self) -> tuple[int, dict[str, str]]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        pairs = [line.partition(":") for line in lines]
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


@dataclass
class Served:
    """A running server, the service behind it, and the decode node before it."""

    service: Service
    server: HttpServer
    decode: Channel
    port: int
    connections: list[Connection] = field(default_factory=list)

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        self.connections.append(connection)
        return connection

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """On a connection of its own."""
        return await (await self.connect()).ask(method, path, body, **headers)

    async def generate(self) -> Generate:
        """The next request that reaches the node."""
        (message,) = await received(self.decode, 1)
        assert isinstance(message, Generate)
        return message

    def tell_to_stop(self) -> None:
        """As SIGTERM does, but for the end of the process."""
        self.server.handle_exit(signal.SIGTERM, None)
        self.server._captured_signals.clear()

    async def has_closed(self) -> bool:
        """Waits until nobody listens any more."""
        while True:
            try:
                (await self.connect()).writer.close()
            except ConnectionError:
                return True
            await asyncio.sleep(0.01)

    def tokens(self, generate: Generate, start: int, tokens: list[int], finish: str = "") -> None:
        """Lets the node answer."""
        self.service.handle(TokensOut([TokenOut(generate.attempt, start, tokens, finish)], D0))


@asynccontextmanager
async def served(decode: Channel, with_node: bool = True, **settings: Any) -> AsyncIterator[Served]:
    """With one live decode node unless told otherwise, and no Redis anywhere unless `settings` name
    one."""
    port = free_port()
    usual = {"redis_url": f"redis://:secret@127.0.0.1:{free_port()}"}
    config = CoordinatorConfig(
        model_path=str(EMBEDDED), served_model_name="tiny", port=port, **(usual | settings)
    )
    service = Service(config, Tokenizer(Path(EMBEDDED)), Channel("127.0.0.1"))
    server = HttpServer(service)
    running = asyncio.create_task(server.serve(sockets=[listen("127.0.0.1", port)]))
    while not server.started:
        await asyncio.sleep(0.005)
    if with_node:
        service.handle(heartbeat("decode", D0, control_address=decode.address))
    here = Served(service, server, decode, port)
    try:
        yield here
    finally:
        for connection in here.connections:
            connection.writer.close()
        server.should_exit = True
        await asyncio.wait_for(running, DEADLINE_S)


def run_served(test: Callable[[], Any]) -> None:
    """Runs a coroutine on the event loop that the product runs on."""
    uvloop.run(asyncio.wait_for(test(), 3 * DEADLINE_S))

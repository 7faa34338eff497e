"""Proxies that send connections only to servers whose GET /ready answers 200."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from infra.ports import free_port
from tests.support.processes.clusters import wait_until

LOOK_EVERY_S = 0.1
FALLS_AFTER = 2
"""So many answers other than 200 in a row take a server out."""


class TinyProxy:
    """A proxy of TCP connections, on a thread of its own. Each goes to the next server that is
    ready."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = free_port()
        self._ports = ports
        self._failures = dict.fromkeys(ports, FALLS_AFTER)
        self._turn = count()
        self._connections: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        looking = [asyncio.create_task(self._look(port)) for port in self._ports]
        await self._ended.wait()
        server.close()
        for task in looking:
            task.cancel()

    async def _look(self, port: int) -> None:
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    reply = await client.get(f"http://127.0.0.1:{port}/ready")
                    is_ready = reply.status_code == 200
                except httpx.HTTPError:
                    is_ready = False
                self._failures[port] = 0 if is_ready else self._failures[port] + 1
                await asyncio.sleep(LOOK_EVERY_S)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Nobody else holds a task whose connections are both paused, and it would be collected.
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        ready = [port for port in self._ports if self._failures[port] < FALLS_AFTER]
        with suppress(OSError, IndexError, ZeroDivisionError):
            port = ready[next(self._turn) % len(ready)]
            there = await asyncio.open_connection("127.0.0.1", port)
            sending = asyncio.create_task(_copy(reader, there[1]))
            await _copy(there[0], writer)
            sending.cancel()
            there[1].close()
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextmanager
def tiny_proxy(ports: Sequence[int]) -> Iterator[str]:
    """Gives the URL of a `TinyProxy`."""
    proxy = TinyProxy(ports)
    proxy.start()
    url = f"http://127.0.0.1:{proxy.port}"
    try:
        wait_until(lambda: _status(f"{url}/ready") == 200, "a ready server behind the proxy")
        yield url
    finally:
        proxy.stop()


HAPROXY_CONFIG = Path(__file__).resolve().parents[3] / "infra/docker/haproxy.cfg"


def haproxy_config(port: int, servers: Sequence[int]) -> str:
    """The configuration of docker-compose.yml, with servers of this host in place of those that
    Docker's name server lists."""
    told = HAPROXY_CONFIG.read_text()
    resolvers = told.index("resolvers docker")
    told = told[:resolvers] + told[told.index("defaults", resolvers) :]
    lines = "\n".join(f"  server c{i} 127.0.0.1:{port}" for i, port in enumerate(servers))
    told = re.sub(r"^  server-template .*$", lines, told, flags=re.MULTILINE)
    return told.replace("bind :30000", f"bind 127.0.0.1:{port}")


@contextmanager
def haproxy(ports: Sequence[int], directory: Path) -> Iterator[str]:
    """Gives the URL of an HAProxy that is configured as in docker-compose.yml."""
    program = haproxy_program()
    assert program is not None
    port = free_port()
    config = directory / "haproxy.cfg"
    config.write_text(haproxy_config(port, ports))
    process = subprocess.Popen([program, "-f", str(config), "-db"])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _status(f"{url}/ready") == 200, "a ready server behind HAProxy")
        yield url
    finally:
        process.terminate()
        process.wait()


def haproxy_program() -> str | None:
    """The path of HAProxy, which Debian keeps where only root looks; None if there is none."""
    return shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def _status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.HTTPError:
        return 0

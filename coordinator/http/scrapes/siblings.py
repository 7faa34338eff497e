"""The other workers behind the same HTTP port: each tells the one that is scraped what it has.

A scraper meets any of them. They meet at sockets that only this host has, named after their parent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable

import msgspec

from protocol.telemetry.metric import Sample

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0
MAX_REPLY_BYTES = 4 << 20


class Siblings:
    """Answers the other workers, and asks them."""

    def __init__(
        self, worker: int, num_workers: int, samples: Callable[[], Iterable[Sample]]
    ) -> None:
        """`samples` returns what this worker tells the others, number `worker` of
        `num_workers`."""
        self._worker, self._num_workers = worker, num_workers
        self._samples = samples
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to answer the others, if there are any."""
        if self._num_workers > 1:
            listening = _socket()
            listening.bind(_address(self._worker))
            self._server = await asyncio.start_unix_server(self._tell, sock=listening)

    async def close(self) -> None:
        """Answers no more."""
        if self._server is not None:
            self._server.close()

    async def others(self) -> list[Sample]:
        """Returns what the other workers have. One that does not answer in time is left out: it
        starts again, or is stuck."""
        numbers = [n for n in range(self._num_workers) if n != self._worker]
        replies = await asyncio.gather(*map(_ask, numbers))
        return [sample for reply in replies for sample in reply]

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(msgspec.msgpack.encode(list(self._samples())))
            await asyncio.wait_for(writer.drain(), TIMEOUT_S)
        except (OSError, asyncio.TimeoutError):
            pass
        finally:
            writer.close()


async def _ask(worker: int) -> list[Sample]:
    try:
        return await asyncio.wait_for(_read(worker), TIMEOUT_S)
    except (OSError, asyncio.TimeoutError, msgspec.DecodeError) as error:
        log.warning("worker %d tells no metrics: %s", worker, error or "it does not answer")
        return []


async def _read(worker: int) -> list[Sample]:
    connecting = _socket()
    try:
        connecting.connect(_address(worker))  # at once, or not at all
    except OSError:
        connecting.close()
        raise
    reader, writer = await asyncio.open_unix_connection(sock=connecting, limit=MAX_REPLY_BYTES)
    try:
        reply = await reader.read(MAX_REPLY_BYTES)
        while part := await reader.read(MAX_REPLY_BYTES):
            reply += part
            if len(reply) > MAX_REPLY_BYTES:
                raise msgspec.DecodeError("its reply is too long")
        return msgspec.msgpack.decode(reply, type=list[Sample])
    finally:
        writer.close()


def _socket() -> socket.socket:
    # Made here, as uvloop does not know names in the abstract namespace.
    made = socket.socket(socket.AF_UNIX)
    made.setblocking(False)
    return made


def _address(worker: int) -> str:
    """Returns the name of a worker's socket, in the abstract namespace: no file is left behind."""
    return f"\0kvrelay-metrics-{os.getppid()}-{worker}"

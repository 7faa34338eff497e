"""Whether the cluster generates, agreed on in a real Redis by several coordinators."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from coordinator.core.errors import Unavailable
from coordinator.core.pause import Pause
from coordinator.peers.peers import Peers
from infra.ports import free_port
from protocol.redis import coordinators
from protocol.redis.client import REDIS_ERRORS, connect_async
from tests.support.coordinator.owners import Server


class Side:
    """One coordinator as far as pauses go."""

    def __init__(self, url: str, address: str) -> None:
        self.redis = connect_async(url, 1.0)
        self.pause = Pause()
        self.peers = Peers(self.redis, address, lambda: self.pause, self.obey)

    def obey(self, pause: Pause) -> None:
        if pause.number > self.pause.number:
            self.pause = pause

    async def set(self, mode: str | None) -> None:
        self.obey(await self.peers.set_pause(mode))  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


def run(url: str, test: Callable[[Side, Side], Awaitable[None]]) -> None:
    async def with_sides() -> None:
        sides = Side(url, "a:1"), Side(url, "b:2")
        try:
            await test(*sides)
        finally:
            for side in sides:
                await side.redis.aclose()

    asyncio.run(with_sides())


def test_the_last_word_counts_for_both(server: Server) -> None:
    async def test(a: Side, b: Side) -> None:
        await a.peers.look()
        assert a.pause == Pause()
        await a.set("retract")
        await b.peers.look()
        assert a.pause == b.pause == Pause(1, "retract")
        await b.set(None)
        await b.set("abort")
        await a.peers.look()
        assert a.pause == b.pause == Pause(3, "abort")

    run(server.url, test)


def test_a_redis_that_forgot_is_told_by_who_knows(server: Server) -> None:
    async def test(a: Side, b: Side) -> None:
        await a.set("retract")
        await a.set("in_place")
        server.client().flushall()
        await b.peers.look()
        assert b.pause == Pause(), "nobody has told it yet"
        await a.peers.look()
        await b.peers.look()
        assert b.pause == a.pause == Pause(2, "in_place")
        server.client().flushall()
        await b.set(None)
        await a.peers.look()
        assert a.pause == Pause(3, None)

    run(server.url, test)


def test_the_others_are_those_who_announce_themselves(server: Server) -> None:
    async def test(a: Side, b: Side) -> None:
        announce = a.redis.register_script(coordinators.ANNOUNCE)
        for address in ("a:1", "b:2", "c:3"):
            lease_ms = -1 if address == "c:3" else 60_000
            args = [coordinators.OUR_VERSIONS, address, lease_ms]
            await announce(keys=coordinators.KEYS, args=args)
        await a.peers.look()
        await b.peers.look()
        assert (a.peers.others, b.peers.others) == ({"b:2"}, {"a:1"})
        server.stop()
        with pytest.raises(REDIS_ERRORS):
            await a.peers.look()
        assert a.peers.others == {"b:2"}, "they can be told still"

    run(server.url, test)


def test_without_redis_nothing_is_paused() -> None:
    async def test(a: Side, b: Side) -> None:
        with pytest.raises(Unavailable, match="Redis"):
            await a.set("abort")
        assert a.pause == Pause()

    run(f"redis://127.0.0.1:{free_port()}", test)

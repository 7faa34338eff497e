"""Page ownership through a real Redis: what nodes publish is what the coordinator's index knows."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from nodes import info_of

from coordinator.follower import OwnershipFollower
from coordinator.index import PrefixIndex
from engine.cache import CacheChange
from infra.ports import free_port
from infra.process import Child
from infra.redis_server import server_command
from node.publisher import OwnershipPublisher
from protocol import ownership
from protocol.hashing import PageHash
from protocol.ids import Node

DEADLINE_S = 20.0
LEASE_S = 1.0
COORDINATOR = "tcp://coordinator:1"
PAGES = [bytes([i]) * 16 for i in range(8)]


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    server = server_command(tmp_path)
    child = Child("redis", server.command, tmp_path / "redis.log", lambda name, line: None)
    server.wait_until_ready(child)
    yield server.url
    child.terminate()
    child.wait()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Following:
    """A follower in a thread of its own, with its index."""

    def __init__(self, redis_url: str) -> None:
        self.index = PrefixIndex()
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._follow(redis_url))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def knows(self, node: Node, pages: list[PageHash]) -> bool:
        return self.index.num_pages(node) == len(pages) and all(
            self.index.match([page]).get(node) == 1 for page in pages
        )

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._task)
        self._loop.close()

    async def _follow(self, redis_url: str) -> None:
        follower = OwnershipFollower(redis_url, COORDINATOR, self.index)
        try:
            await follower.run()
        except asyncio.CancelledError:
            await follower.close()


@pytest.fixture
def following(redis_url: str) -> Iterator[Following]:
    following = Following(redis_url)
    yield following
    following.close()


class Publishing:
    def __init__(self, redis_url: str, node: Node) -> None:
        self.replaced = threading.Event()
        self.publisher = OwnershipPublisher(
            redis_url, info_of("prefill", node), LEASE_S, self.replaced.set
        )
        self.publisher.start()

    def stored(self, *pages: PageHash) -> None:
        self.publisher.publish([CacheChange(removed=[], stored=list(pages))])

    def removed(self, *pages: PageHash) -> None:
        self.publisher.publish([CacheChange(removed=list(pages), stored=[])])


@pytest.fixture
def publish(redis_url: str) -> Iterator[Callable[[Node], Publishing]]:
    started: list[Publishing] = []

    def start(node: Node) -> Publishing:
        started.append(Publishing(redis_url, node))
        return started[-1]

    yield start
    for each in started:
        each.publisher.close()


Start = Callable[[Node], Publishing]


def test_what_a_node_stores_and_evicts_reaches_the_index(
    publish: Start, following: Following
) -> None:
    node = Node("p0", 1)
    publishing = publish(node)
    publishing.stored(*PAGES[:3])
    wait_until(lambda: following.knows(node, PAGES[:3]))
    publishing.removed(PAGES[2])
    publishing.stored(PAGES[5])
    wait_until(lambda: following.knows(node, [PAGES[0], PAGES[1], PAGES[5]]))
    wait_until(lambda: publishing.publisher.coordinators == (COORDINATOR,))


def test_a_coordinator_that_comes_late_reads_the_whole_set(redis_url: str, publish: Start) -> None:
    node = Node("p0", 1)
    publish(node).stored(*PAGES)
    following = Following(redis_url)
    try:
        wait_until(lambda: following.knows(node, PAGES))
    finally:
        following.close()


def test_an_emptied_redis_is_filled_again(
    redis_url: str, publish: Start, following: Following
) -> None:
    node = Node("p0", 1)
    publishing = publish(node)
    publishing.stored(*PAGES[:4])
    wait_until(lambda: following.knows(node, PAGES[:4]))
    redis.Redis.from_url(redis_url, protocol=2).flushall()
    publishing.stored(PAGES[6])
    wait_until(lambda: following.knows(node, [*PAGES[:4], PAGES[6]]))


def test_a_replaced_life_of_a_node_can_write_no_more(publish: Start, following: Following) -> None:
    old = publish(Node("p0", 1))
    old.stored(*PAGES[:2])
    wait_until(lambda: following.knows(Node("p0", 1), PAGES[:2]))
    publish(Node("p0", 2)).stored(PAGES[7])
    assert old.replaced.wait(DEADLINE_S)
    old.stored(PAGES[3])
    wait_until(lambda: following.knows(Node("p0", 2), [PAGES[7]]))
    wait_until(lambda: following.knows(Node("p0", 1), []))


def test_an_old_life_that_leaves_does_not_take_the_newer_ones_lease(
    redis_url: str, publish: Start, following: Following
) -> None:
    old = publish(Node("p0", 1))
    old.stored(PAGES[0])
    wait_until(lambda: following.knows(Node("p0", 1), PAGES[:1]))
    server = redis.Redis.from_url(redis_url, protocol=2)
    # A newer life registers and the old one leaves before it has noticed.
    server.set(ownership.NodeKeys.of(Node("p0", 2)).lease, 2)
    old.publisher.close()
    assert server.get(ownership.NodeKeys.of(Node("p0", 2)).lease) == b"2"


def test_a_record_of_another_version_harms_nobody(
    redis_url: str, publish: Start, following: Following
) -> None:
    keys = ownership.NodeKeys.of(Node("stranger", 1))
    server = redis.Redis.from_url(redis_url, protocol=2)
    server.set(keys.lease, 1)
    server.set(keys.info, b'{"from": "the future"}')
    server.sadd(ownership.NODES_KEY, "stranger", "long gone")
    publishing = publish(Node("p0", 1))
    publishing.stored(*PAGES)
    wait_until(lambda: following.knows(Node("p0", 1), PAGES))
    wait_until(lambda: not server.sismember(ownership.NODES_KEY, "long gone"))


def test_every_key_of_a_node_ends_by_itself(redis_url: str, publish: Start) -> None:
    """A node that is killed leaves nothing in Redis for ever."""
    server = redis.Redis.from_url(redis_url, protocol=2)
    publishing = publish(Node("p0", 1))
    publishing.stored(*PAGES)
    keys = ownership.NodeKeys.of(Node("p0", 1)).all()
    wait_until(lambda: all(server.exists(key) for key in keys))
    assert all(server.pttl(key) > 0 for key in keys)


def test_a_coordinator_that_lost_redis_keeps_its_heartbeats(redis_url: str, publish: Start) -> None:
    server = redis.Redis.from_url(redis_url, protocol=2)
    server.zadd(ownership.COORDINATORS_KEY, {COORDINATOR: 2e15})
    publisher = publish(Node("p0", 1)).publisher
    wait_until(lambda: publisher.coordinators == (COORDINATOR,))
    server.zrem(ownership.COORDINATORS_KEY, COORDINATOR)
    lease = ownership.NodeKeys.of(Node("p0", 1)).lease
    for _ in range(2):  # the second renewal shows that the first has looked for coordinators
        server.delete(lease)
        wait_until(lambda: server.exists(lease))
    assert publisher.coordinators == (COORDINATOR,)


def test_a_node_that_leaves_is_forgotten(publish: Start, following: Following) -> None:
    node = Node("p0", 1)
    publishing = publish(node)
    publishing.stored(*PAGES)
    wait_until(lambda: following.knows(node, PAGES))
    publishing.publisher.close()
    wait_until(lambda: following.knows(node, []))


def test_a_redis_that_never_answers_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    caplog.set_level(logging.WARNING)
    node = Publishing(url, Node("p0", 1))
    following = Following(url)

    def told() -> list[str]:
        return [r.name for r in caplog.records if "Redis is unreachable" in r.message]

    try:
        wait_until(lambda: {"node.publisher", "coordinator.follower"} <= set(told()))
        node.stored(*PAGES)  # never waits
    finally:
        following.close()
        node.publisher.close()
    assert len(told()) == 2

"""Page ownership through a real Redis: what nodes publish is what the coordinator's index knows."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.ownership.follower import OwnershipFollower
from coordinator.ownership.index import PrefixIndex
from engine.cache.prefix_cache import CacheChange
from infra.ports import free_port
from protocol.hashing import PageHash
from protocol.ids import Node
from protocol.redis import coordinators, ownership
from protocol.redis.client import REDIS_ERRORS
from tests.support.coordinator.owners import (
    COORDINATOR,
    DEADLINE_S,
    Following,
    Publishing,
    Server,
    Writer,
    wait_until,
)

PAGES = [bytes([i]) * 16 for i in range(8)]
P0 = Node("p0", 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def redis_url(server: Server) -> str:
    return server.url


@pytest.fixture
def following(redis_url: str) -> Iterator[Following]:
    following = Following(redis_url)
    yield following
    following.close()


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
    server: Server, publish: Start, following: Following
) -> None:
    node = Node("p0", 1)
    publishing = publish(node)
    publishing.stored(*PAGES[:4])
    wait_until(lambda: following.knows(node, PAGES[:4]))
    server.client().flushall()
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


def test_the_newer_life_takes_the_lease_back_from_the_older_one(server: Server) -> None:
    """The older one may have been the first to write after Redis came back empty."""
    writer, old, new = Writer(server.client()), Node("p0", 1), Node("p0", 2)
    writer.register(old)
    assert writer.call(ownership.RENEW, new, 0) == ownership.LOST, "it is not told to stop"
    writer.reload(new, PAGES[:1])
    assert writer.call(ownership.RENEW, old, 0) == ownership.FENCED


def test_an_old_life_that_leaves_does_not_take_the_newer_ones_lease(
    server: Server, publish: Start, following: Following
) -> None:
    old = publish(Node("p0", 1))
    old.stored(PAGES[0])
    wait_until(lambda: following.knows(Node("p0", 1), PAGES[:1]))
    redis = server.client()
    # A newer life registers and the old one leaves before it has noticed.
    redis.set(ownership.NodeKeys.of(Node("p0", 2)).lease, 2)
    old.publisher.close()
    assert redis.get(ownership.NodeKeys.of(Node("p0", 2)).lease) == b"2"


def test_a_record_of_another_version_harms_nobody(
    server: Server, publish: Start, following: Following
) -> None:
    keys = ownership.NodeKeys.of(Node("stranger", 1))
    redis = server.client()
    redis.set(keys.lease, 1)
    redis.set(keys.info, b'{"from": "the future"}')
    redis.sadd(ownership.NODES_KEY, "stranger", "long gone")
    publishing = publish(Node("p0", 1))
    publishing.stored(*PAGES)
    wait_until(lambda: following.knows(Node("p0", 1), PAGES))
    wait_until(lambda: not redis.sismember(ownership.NODES_KEY, "long gone"))


def test_every_key_of_a_node_ends_by_itself(server: Server, publish: Start) -> None:
    """A node that is killed leaves nothing in Redis for ever."""
    redis = server.client()
    publishing = publish(Node("p0", 1))
    publishing.stored(*PAGES)
    keys = ownership.NodeKeys.of(Node("p0", 1)).all()
    wait_until(lambda: all(redis.exists(key) for key in keys))
    assert all(redis.pttl(key) > 0 for key in keys)


def test_a_coordinator_that_lost_redis_keeps_its_heartbeats(server: Server, publish: Start) -> None:
    redis = server.client()
    redis.zadd(coordinators.COORDINATORS_KEY, {COORDINATOR: 2e15})
    publisher = publish(Node("p0", 1)).publisher
    wait_until(lambda: publisher.coordinators == (COORDINATOR,))
    redis.zrem(coordinators.COORDINATORS_KEY, COORDINATOR)
    lease = ownership.NodeKeys.of(Node("p0", 1)).lease
    for _ in range(2):  # the second renewal shows that the first has looked for coordinators
        redis.delete(lease)
        wait_until(lambda: redis.exists(lease))
    assert publisher.coordinators == (COORDINATOR,)


def test_a_node_that_leaves_is_forgotten(publish: Start, following: Following) -> None:
    node = Node("p0", 1)
    publishing = publish(node)
    publishing.stored(*PAGES)
    wait_until(lambda: following.knows(node, PAGES))
    publishing.publisher.close()
    wait_until(lambda: following.knows(node, []))


def test_a_node_that_drains_is_marked_until_it_has_left(
    server: Server, publish: Start, following: Following
) -> None:
    node, others, redis = publish(P0), publish(Node("p1", 3)), server.client()
    marked: list[bool] = []
    for each in (node, others):
        each.publisher.mark_draining(marked.append)
    mirror = following.follower.mirror
    wait_until(lambda: mirror.drain_marks == {"p0": "1", "p1": "3"})
    assert marked == [True, True]
    for each in (node, others):
        each.publisher.close()
    wait_until(lambda: mirror.drain_marks == {})
    assert redis.hgetall(ownership.DRAINING_KEY) == {b"": b"0"}, "nobody writes the marks again"


@pytest.mark.parametrize("mark", [b"keep", b"7"])
def test_a_mark_that_says_more_stays(mark: bytes, server: Server, publish: Start) -> None:
    redis, node = server.client(), publish(P0)
    redis.hset(ownership.DRAINING_KEY, "p0", mark)
    marked = threading.Event()
    node.publisher.mark_draining(lambda is_written: marked.set())
    assert marked.wait(DEADLINE_S)
    assert redis.hget(ownership.DRAINING_KEY, "p0") == mark
    node.publisher.close()
    assert redis.hget(ownership.DRAINING_KEY, "p0") == mark


def test_a_mark_that_makes_no_sense_is_replaced(server: Server, publish: Start) -> None:
    redis, node = server.client(), publish(P0)
    redis.hset(ownership.DRAINING_KEY, "p0", b"nonsense")
    told: list[bool] = []
    node.publisher.mark_draining(told.append)
    wait_until(lambda: told)
    assert told == [True] and redis.hget(ownership.DRAINING_KEY, "p0") == b"1"


def test_a_mark_that_redis_cannot_take_is_told_at_once(server: Server, publish: Start) -> None:
    node = publish(P0)
    server.stop()
    told: list[bool] = []
    node.publisher.mark_draining(told.append)
    wait_until(lambda: told == [False])


def test_a_redis_that_never_answers_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    caplog.set_level(logging.WARNING)
    node = Publishing(url, Node("p0", 1))
    following = Following(url)

    def told() -> list[str]:
        return [r.name for r in caplog.records if "no Redis answers" in r.message]

    try:
        wait_until(
            lambda: {"node.shell.publisher", "coordinator.ownership.follower"} <= set(told())
        )
        node.stored(*PAGES)  # never waits
    finally:
        following.close()
        node.publisher.close()
    assert len(told()) == 2
    (of_coordinator,) = (r for r in caplog.records if r.name == "coordinator.ownership.follower")
    assert "no node can find this coordinator" in of_coordinator.message


def test_changes_that_wait_are_joined_and_end_the_same(
    server: Server, publish: Start, following: Following
) -> None:
    publishing = publish(P0)
    publishing.stored(PAGES[0])
    wait_until(lambda: following.knows(P0, PAGES[:1]))
    changes = [CacheChange(removed=[], stored=[i.to_bytes(16, "big")]) for i in range(5_000)]
    changes.append(CacheChange(removed=[PAGES[0]], stored=[PAGES[1]]))
    changes.append(CacheChange(removed=[PAGES[1]], stored=[PAGES[0]]))
    changes.append(CacheChange(removed=[PAGES[0]], stored=[PAGES[0], PAGES[2]]))
    publishing.publisher.publish(changes)
    expected = {i.to_bytes(16, "big") for i in range(5_000)} | {PAGES[0], PAGES[2]}
    wait_until(lambda: following.record(P0) == expected)
    wait_until(lambda: following.knows(P0, expected))
    assert server.client().xlen(ownership.NodeKeys.of(P0).changes) < 20


def test_a_record_that_lost_changes_is_written_again(
    server: Server, publish: Start, following: Following
) -> None:
    """A replica that lagged may have become the master: only the node can know what is lost."""
    publish(P0).stored(*PAGES)
    wait_until(lambda: following.knows(P0, PAGES))
    keys, redis = ownership.NodeKeys.of(P0), server.client()
    with redis.pipeline() as lose:
        lose.decr(keys.sequence).srem(keys.pages, PAGES[5], PAGES[6]).execute()
    wait_until(lambda: following.record(P0) == set(PAGES))
    wait_until(lambda: following.knows(P0, PAGES))


def test_a_node_republishes_when_asked(
    server: Server, publish: Start, following: Following
) -> None:
    node = publish(P0)
    node.stored(*PAGES)
    wait_until(lambda: following.knows(P0, PAGES))
    server.client().srem(ownership.NodeKeys.of(P0).pages, PAGES[2])
    assert following.record(P0) == {*PAGES} - {PAGES[2]}
    node.publisher.republish()
    wait_until(lambda: following.record(P0) == set(PAGES))
    wait_until(lambda: following.follower.mirror.num_reloads > 0)
    assert following.knows(P0, PAGES)


def test_a_rewrite_keeps_parents_before_children(server: Server, following: Following) -> None:
    """No part of the rewrite shows a child alone, even if its parent was removed and stored
    again."""
    publishing = Publishing(server.url, P0)
    try:
        publishing.stored(*PAGES[:4])
        publishing.removed(PAGES[3], PAGES[2], PAGES[1], PAGES[0])
        publishing.stored(PAGES[7], PAGES[0], PAGES[1])
        wait_until(lambda: following.knows(P0, [PAGES[7], PAGES[0], PAGES[1]]))
        assert publishing.publisher._writer.owned == [PAGES[7], PAGES[0], PAGES[1]]
    finally:
        publishing.publisher.close()


def test_a_gap_in_the_changes_makes_the_set_be_read_again(
    server: Server, following: Following
) -> None:
    writer, redis = Writer(server.client()), server.client()
    writer.stored(P0, PAGES[:2])
    wait_until(lambda: following.knows(P0, PAGES[:2]))
    keys = ownership.NodeKeys.of(P0)
    with redis.pipeline() as lose:  # one change without its entry
        lose.sadd(keys.pages, PAGES[2]).srem(keys.pages, PAGES[0]).incr(keys.sequence).execute()
    writer.sequences[P0] += 1
    writer.stored(P0, [PAGES[3]])
    wait_until(lambda: following.knows(P0, PAGES[1:4]))
    assert following.follower.mirror.num_reloads == 1


def test_a_redis_whose_clock_is_behind_hides_no_change(
    server: Server, following: Following
) -> None:
    """The ids of entries are times: after a failover they may lie before what was read already."""
    writer, redis = Writer(server.client()), server.client()
    writer.stored(P0, PAGES[:2])
    changes = ownership.NodeKeys.of(P0).changes
    _, last = redis.xrevrange(changes, count=1)[0]
    with redis.pipeline() as ahead:
        ahead.xadd(changes, last | {b"n": 3, b"s": PAGES[2]}, id=f"{10**13}-0")
        ahead.set(ownership.NodeKeys.of(P0).sequence, 3)
        ahead.sadd(ownership.NodeKeys.of(P0).pages, PAGES[2]).execute()
    wait_until(lambda: following.knows(P0, PAGES[:3]))
    redis.unlink(changes)
    writer.sequences[P0] = 3
    writer.stored(P0, [PAGES[3]])
    wait_until(lambda: following.knows(P0, PAGES[:4]))
    writer.removed(P0, [PAGES[3]])
    wait_until(lambda: following.knows(P0, PAGES[:3]))
    assert following.follower.mirror.num_reloads == 1


def test_a_set_that_is_being_rewritten_is_not_read(server: Server, following: Following) -> None:
    writer = Writer(server.client())
    writer.reload(P0, PAGES[:4])
    wait_until(lambda: following.knows(P0, PAGES[:4]))
    writer.register(P0)
    writer.register(Node("p1", 1))
    writer.reload(Node("p2", 1), PAGES)  # when this is known, the others were looked at
    wait_until(lambda: following.knows(Node("p2", 1), PAGES))
    assert following.knows(P0, PAGES[:4])
    writer.reload(P0, PAGES[:3])
    wait_until(lambda: following.knows(P0, PAGES[:3]))


def test_a_mirror_is_read_again_when_asked(publish: Start, following: Following) -> None:
    async def spoil_and_reload() -> None:
        following.index.removed(P0, PAGES[:2])
        following.index.stored(P0, [b"?" * 16])
        await following.follower.reload(P0)
        await following.follower.reload(Node("nobody", 1))

    publish(P0).stored(*PAGES)
    wait_until(lambda: following.knows(P0, PAGES))
    before = following.follower.mirror.num_reloads
    following.call(spoil_and_reload())
    assert following.knows(P0, PAGES)
    assert following.follower.mirror.num_reloads == before + 1


def test_draining_is_known_to_every_coordinator(
    redis_url: str, server: Server, following: Following
) -> None:
    other = Following(redis_url, "tcp://other:1")
    try:
        following.call(following.follower.set_drain_mark("p0", "keep"))
        following.call(following.follower.set_drain_mark("p1", "5"))
        assert following.follower.mirror.drain_marks == {"p0": "keep", "p1": "5"}
        wait_until(lambda: other.follower.mirror.drain_marks == {"p0": "keep", "p1": "5"})
        other.call(other.follower.set_drain_mark("p0", "0"))
        wait_until(lambda: following.follower.mirror.drain_marks == {"p1": "5"})
        server.client().flushall()
        late = Following(redis_url)
        wait_until(lambda: late.follower.mirror.drain_marks == {"p1": "5"})
        late.close()
    finally:
        other.close()


def test_the_lag_of_changes_is_measured(publish: Start, following: Following) -> None:
    node = publish(P0)
    node.stored(PAGES[0])
    wait_until(lambda: following.knows(P0, PAGES[:1]))
    node.stored(PAGES[1])
    wait_until(lambda: following.follower.mirror.lag_s > 0)
    assert following.follower.mirror.lag_s < DEADLINE_S


@pytest.mark.verify
def test_a_redis_that_hangs_holds_up_nobody(
    server: Server, publish: Start, following: Following
) -> None:
    node = publish(P0)
    node.stored(*PAGES[:4])
    wait_until(lambda: following.knows(P0, PAGES[:4]) and following.follower.mirror.is_connected)
    stalls: list[float] = []

    async def beat() -> None:
        while following.follower.mirror.is_connected:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            stalls.append(time.monotonic() - before)

    server.child.process.send_signal(signal.SIGSTOP)
    try:
        publish_s = []
        beating = asyncio.run_coroutine_threadsafe(beat(), following._loop)
        while not beating.done():
            before = time.monotonic()
            node.stored(PAGES[5])
            node.removed(PAGES[5])
            publish_s.append(time.monotonic() - before)
            time.sleep(0.01)
        with pytest.raises(REDIS_ERRORS):
            following.call(following.follower.set_drain_mark("p0", "keep"))
    finally:
        server.child.process.send_signal(signal.SIGCONT)
    assert max(stalls) < 0.5 and max(publish_s) < 0.5
    node.stored(PAGES[6])
    expected = [*PAGES[:4], PAGES[6]]
    wait_until(lambda: following.knows(P0, expected))
    wait_until(lambda: following.record(P0) == set(expected))


def test_a_redis_that_comes_back_empty_is_filled_again(
    server: Server, publish: Start, following: Following
) -> None:
    nodes = [Node(f"p{i}", 1) for i in range(3)]
    publishing = [publish(node) for node in nodes]
    for each in publishing:
        each.stored(*PAGES[:4])
    wait_until(lambda: all(following.knows(node, PAGES[:4]) for node in nodes))
    wait_until(lambda: following.follower.mirror.is_connected)
    server.stop()
    wait_until(lambda: not following.follower.mirror.is_connected)
    publishing[0].stored(PAGES[4])
    assert all(following.knows(node, PAGES[:4]) for node in nodes)  # from memory
    server.start()
    wait_until(lambda: following.knows(nodes[0], PAGES[:5]))
    wait_until(lambda: all(following.knows(node, PAGES[:4]) for node in nodes[1:]))
    assert following.record(nodes[2]) == set(PAGES[:4])


class Churning:
    """A node that stores and removes random chains, parents before children, on its own thread."""

    def __init__(self, publishing: Publishing, seed: int) -> None:
        self.owned: dict[int, int] = {}  # chain → depth
        self.is_half_way = threading.Event()
        self._publishing = publishing
        self._random = random.Random(seed)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def pages(self) -> set[PageHash]:
        return {page(chain, i) for chain, depth in self.owned.items() for i in range(depth)}

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        for step in range(400):
            changes = [self._change() for _ in range(self._random.randrange(1, 8))]
            self._publishing.publisher.publish(changes)
            if step == 200:
                self.is_half_way.set()
            if step % 10 == 0:
                time.sleep(0.01)  # several batches, not one

    def _change(self) -> CacheChange:
        removed, stored = [], []
        for _ in range(self._random.randrange(3)):
            chain = self._random.randrange(60)
            depth = self.owned.get(chain, 0)
            keep = self._random.randrange(depth + 1)
            removed += [page(chain, i) for i in reversed(range(keep, depth))]
            self.owned[chain] = keep
        for _ in range(self._random.randrange(3)):
            chain = self._random.randrange(60)
            depth = self.owned.get(chain, 0)
            more = self._random.randrange(30)
            stored += [page(chain, i) for i in range(depth, depth + more)]
            self.owned[chain] = depth + more
        return CacheChange(removed=removed, stored=stored)


def page(chain: int, i: int) -> PageHash:
    return (chain << 32 | i).to_bytes(16, "big")


@pytest.mark.parametrize("seed", [1, 2])
def test_two_coordinators_end_equal_whatever_happens(
    server: Server, publish: Start, following: Following, seed: int
) -> None:
    other = Following(server.url, "tcp://other:1")
    numbers = itertools.count(seed * 100)
    nodes = [Node(f"p{i}", 1) for i in range(3)]
    try:
        churning = {node: Churning(publish(node), next(numbers)) for node in nodes}
        churning[nodes[0]].is_half_way.wait(DEADLINE_S)
        server.client().flushall()
        churning.pop(nodes[1]).join()
        reborn = Node("p1", 2)
        churning[reborn] = Churning(publish(reborn), next(numbers))
        for each in churning.values():
            each.join()
        for node, each in churning.items():
            assert each.pages
            wait_until(lambda node=node, each=each: following.record(node) == each.pages)
            wait_until(lambda node=node, each=each: following.knows(node, each.pages))
            wait_until(lambda node=node, each=each: other.knows(node, each.pages))
        wait_until(lambda: following.knows(nodes[1], []) and other.knows(nodes[1], []))
        everything = set().union(*(each.pages for each in churning.values()))
        assert following.index.num_unique_pages == len(everything)
        assert other.index.num_unique_pages == len(everything)
    finally:
        other.close()


def test_a_follower_ends_whenever_it_is_cancelled(redis_url: str) -> None:
    """`asyncio.wait_for` before Python 3.12 loses a cancellation now and then."""

    async def cancel_after(delay_s: float) -> None:
        follower = OwnershipFollower(redis_url, COORDINATOR, PrefixIndex())
        running = asyncio.create_task(follower.run())
        await asyncio.sleep(delay_s)
        running.cancel()
        done, _ = await asyncio.wait({running}, timeout=DEADLINE_S)
        assert done and running.cancelled()
        await follower.close()

    async def cancel_many() -> None:
        for _ in range(5):
            await asyncio.gather(*(cancel_after(i / 1000) for i in range(40)))

    asyncio.run(cancel_many())

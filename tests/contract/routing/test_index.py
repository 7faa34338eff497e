"""What every index of page ownership promises: from memory, and asked of a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pytest

from coordinator.ownership.index import PrefixIndex
from coordinator.ownership.mirror import OwnershipMirror
from coordinator.ownership.redis_index import RedisIndex
from protocol.hashing import PageHash, chain_start, join_hashes, page_hashes, split_hashes
from protocol.ids import Node
from protocol.namespace import Namespace
from protocol.redis import ownership
from protocol.redis.client import connect_async
from tests.support.coordinator.nodes import LAYOUT, ReloadedIndex
from tests.support.coordinator.owners import Server, Writer

PAGE_SIZE = 4
P0, P1, P2 = Node("p0", 1), Node("p1", 1), Node("p2", 1)


def chain(num_pages: int, seed: int = 0, tenant: str = "") -> list[PageHash]:
    tokens = [seed] * num_pages * PAGE_SIZE
    return page_hashes(tokens, PAGE_SIZE, chain_start("model", LAYOUT, Namespace(tenant)))


class Index(Protocol):
    def stored(self, node: Node, hashes: Sequence[PageHash]) -> None: ...
    def removed(self, node: Node, hashes: Sequence[PageHash]) -> None: ...
    def reload(self, node: Node, hashes: Sequence[PageHash]) -> None: ...
    def forget(self, node: Node) -> None: ...
    def match(self, hashes: Sequence[PageHash]) -> dict[Node, int]: ...
    def pages(self, node: Node) -> list[PageHash]: ...


class RecordIndex(Writer):
    """The record in Redis, written as nodes write it and asked by `RedisIndex`."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server.client())
        self._loop = loop
        self._client: Any = connect_async(server.url, timeout_s=5.0)
        self._index = RedisIndex(self._client)

    def match(self, hashes: Sequence[PageHash]) -> dict[Node, int]:
        return self._loop.run_until_complete(self._index.match(hashes))

    def pages(self, node: Node) -> list[PageHash]:
        return split_hashes(self._loop.run_until_complete(self._index.pages(node)))

    def nodes(self) -> list[Node]:
        scripts = self.redis.register_script(ownership.LIST_LEASES)
        listed = scripts([ownership.NODES_KEY], [ownership.NODE_PREFIX])
        return [*OwnershipMirror("tcp://me:1", PrefixIndex()).parse_nodes(listed)]

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self.redis.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def record(server: Server) -> Iterator[RecordIndex]:
    server.client().flushall()
    loop = asyncio.new_event_loop()
    record = RecordIndex(server, loop)
    yield record
    record.close()
    loop.close()


@pytest.fixture(params=["memory", "redis"])
def index(request: pytest.FixtureRequest) -> Index:
    if request.param == "memory":
        return ReloadedIndex()
    record: RecordIndex = request.getfixturevalue("record")
    return record


def test_a_match_is_the_number_of_leading_pages_per_node(index: Index) -> None:
    prompt = chain(9)
    index.stored(P0, prompt[:2])
    index.stored(P1, prompt)
    index.stored(P2, chain(3, seed=1))
    assert index.match(prompt) == {P0: 2, P1: 9}
    assert index.match(prompt[:1]) == {P0: 1, P1: 1}
    assert index.match([*prompt, b"?" * 16]) == {P0: 2, P1: 9}


@pytest.mark.parametrize("depth", [0, 1, 2, 299, 300, 1_000, 1_001, 2_499, 2_500])
def test_every_depth_of_a_long_prompt_is_found(index: Index, depth: int) -> None:
    prompt = chain(2_500)
    index.stored(P0, prompt[:depth])
    assert index.match(prompt) == ({P0: depth} if depth else {})


def test_an_unknown_or_empty_prompt_matches_nowhere(index: Index) -> None:
    assert index.match(chain(3)) == {}
    index.stored(P0, chain(3))
    assert index.match(chain(3, seed=1)) == {}
    assert index.match([]) == {}


def test_removed_pages_shorten_the_match_of_their_node_alone(index: Index) -> None:
    prompt = chain(300)
    index.stored(P0, prompt)
    index.stored(P1, prompt)
    index.removed(P0, prompt[:99:-1])
    assert index.match(prompt) == {P0: 100, P1: 300}
    index.removed(P0, prompt[:100])
    assert index.match(prompt) == {P1: 300}
    index.removed(P0, prompt)  # again: nothing
    index.stored(P0, prompt[:5])
    assert index.match(prompt) == {P0: 5, P1: 300}


def test_storing_twice_is_storing_once(index: Index) -> None:
    index.stored(P0, chain(4))
    index.stored(P0, chain(6))
    index.removed(P0, chain(6)[4:])
    assert index.match(chain(6)) == {P0: 4}


def test_a_forgotten_node_owns_nothing_and_may_come_back(index: Index) -> None:
    index.stored(P0, chain(4))
    index.stored(P1, chain(4))
    index.forget(P0)
    assert index.match(chain(4)) == {P1: 4}
    assert index.pages(P0) == []
    reborn = Node("p0", 2)
    index.stored(reborn, chain(2))
    assert index.match(chain(4)) == {reborn: 2, P1: 4}


def test_a_reload_replaces_what_a_node_owned(index: Index) -> None:
    index.stored(P0, chain(300))
    index.stored(P1, chain(2))
    index.reload(P0, chain(3) + chain(5, seed=1))
    assert index.match(chain(300)) == {P0: 3, P1: 2}
    assert index.match(chain(5, seed=1)) == {P0: 5}
    index.stored(P0, chain(4)[3:])
    assert index.match(chain(300)) == {P0: 4, P1: 2}


def test_tenants_never_meet(index: Index) -> None:
    index.stored(P0, chain(4, tenant="a"))
    index.stored(P1, chain(4, tenant="b"))
    assert index.match(chain(4, tenant="a")) == {P0: 4}
    assert index.match(chain(4, tenant="b")) == {P1: 4}
    assert index.match(chain(4)) == {}


def test_the_pages_of_a_node_are_all_it_owns(index: Index) -> None:
    prompt = chain(5_000)
    index.stored(P0, prompt)
    index.stored(P1, chain(3))
    index.removed(P0, prompt[4_000:])
    pages = index.pages(P0)
    assert set(pages) == set(prompt[:4_000]) and len(pages) == 4_000


def test_a_set_with_a_hole_matches_up_to_the_hole(record: RecordIndex) -> None:
    """A set must have no hole; if it has one, the record promises no page that is lacking."""
    prompt = chain(1_200)
    for hole in (1_150, 700, 3, 1, 0):
        record.reload(P0, prompt[:hole] + prompt[hole + 1 :])
        assert record.match(prompt) == ({P0: hole} if hole else {})


def test_the_record_lists_nodes_with_a_lease(record: RecordIndex) -> None:
    record.stored(P0, chain(1))
    record.stored(P1, chain(1))
    assert sorted(record.nodes()) == [P0, P1]
    record.forget(P0)
    assert record.nodes() == [P1]
    assert record.match(chain(1)) == {P1: 1}


def test_the_record_refuses_a_change_that_does_not_follow(record: RecordIndex) -> None:
    record.stored(P0, chain(1))
    for sequence, expected in ((2, ownership.LOST), (4, ownership.LOST), (3, ownership.APPLIED)):
        change = ownership.Change(sequence, False, join_hashes(chain(2)), b"")
        assert record.call(ownership.APPLY, P0, *change.args()) == expected
    assert record.match(chain(2)) == {P0: 2}
    assert record.call(ownership.RENEW, P0, 3) == ownership.APPLIED
    assert record.call(ownership.RENEW, P0, 4) == ownership.LOST


def test_a_change_removes_first_and_then_stores(record: RecordIndex) -> None:
    record.stored(P0, chain(3))
    record.sequences[P0] += 1
    removed, stored = join_hashes(chain(3)[::-1]), join_hashes(chain(2))
    change = ownership.Change(record.sequences[P0], False, stored, removed)
    assert record.call(ownership.APPLY, P0, *change.args()) == ownership.APPLIED
    assert record.match(chain(3)) == {P0: 2}

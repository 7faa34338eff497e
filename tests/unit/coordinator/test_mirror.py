"""The mirror of the ownership record, against a model of the Redis that it asks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from coordinator.ownership.index import PrefixIndex
from coordinator.ownership.mirror import (
    BYTES_AT_ONCE,
    LOOK_FOR_NODES_S,
    READ_BLOCK_MS,
    RETRY_S,
    STREAM_S,
    MirrorCall,
    OwnershipMirror,
)
from protocol.hashing import PageHash, join_hashes
from protocol.ids import Node
from protocol.redis import ownership

P0, P1 = Node("p0", 1), Node("p1", 1)
PAGES = [bytes([i]) * 16 for i in range(32)]
PAGES_PER_SCAN = 3
START_S = 100.0


class ModelRedis:
    """What the mirror uses of Redis. Changes are made by hand, as nodes make them."""

    def __init__(self) -> None:
        self.pages: dict[Node, list[PageHash]] = {}
        self.sequences: dict[Node, int | None] = {}
        self.streams: dict[str, list[tuple[bytes, dict[bytes, bytes]]]] = {}
        self.draining: dict[bytes, bytes] = {}
        self.leases: dict[Node, bytes] = {}
        self.now = START_S

    def change(
        self,
        node: Node,
        stored: Sequence[PageHash] = (),
        removed: Sequence[PageHash] = (),
        kind: bytes = b"change",
        is_lost: bool = False,
    ) -> None:
        """`is_lost`: the entry in the stream is."""
        owned = self.pages.setdefault(node, [])
        self.pages[node] = [page for page in owned if page not in removed] + list(stored)
        self.leases.setdefault(node, b"%d" % node.incarnation)
        number = (self.sequences.get(node) or 0) + 1
        self.sequences[node] = number
        entries = self.streams.setdefault(ownership.NodeKeys.of(node).changes, [])
        if not is_lost:
            fields = {b"n": b"%d" % number, b"k": kind}
            fields |= {b"s": join_hashes(stored), b"r": join_hashes(removed)}
            entries.append((b"%d-%d" % (self.now * 1000, len(entries)), fields))

    def lose(self, node: Node) -> None:
        del self.sequences[node]

    def carry_out(self, call: MirrorCall) -> Any:
        if call.script == "announce":
            return int(self.now * 1e6)
        if call.script == "read_draining":
            return dict(self.draining)
        if call.script == "write_draining":
            self.draining |= {k.encode(): v.encode() for k, v in call.args[0].items()}
            return None
        if call.script == "list_leases":
            listed: list[Any] = []
            for node, number in self.sequences.items():
                sequence = None if number is None else b"%d" % number
                listed += [node.name.encode(), self.leases[node], sequence]
            return listed
        if call.script == "last_change":
            return self.streams.get(call.args[0], [])[-1:]
        if call.script == "scan_pages":
            key, cursor, _ = call.args
            (owned,) = (p for n, p in self.pages.items() if ownership.NodeKeys.of(n).pages == key)
            # In the order of the hashes: what comes or goes moves no other page.
            rest = sorted(page for page in owned if int.from_bytes(page, "big") >= int(cursor))
            part, behind = rest[:PAGES_PER_SCAN], rest[PAGES_PER_SCAN:]
            next_cursor = b"%d" % int.from_bytes(behind[0], "big") if behind else b"0"
            return [next_cursor, join_hashes(part)]
        positions, count, _ = call.args
        return [
            (key.encode(), [entry for entry in self.streams[key] if _after(entry[0], last)][:count])
            for key, last in positions.items()
            if any(_after(entry[0], last) for entry in self.streams.get(key, []))
        ]


def _after(stream_id: bytes, last: bytes) -> bool:
    def parts(one: bytes) -> list[int]:
        return [int(number) for number in one.split(b"-")]

    return parts(stream_id) > parts(last)


class Mirroring:
    """A mirror and its Redis on one clock."""

    def __init__(self) -> None:
        self.redis = ModelRedis()
        self.index = PrefixIndex()
        self.mirror = OwnershipMirror("tcp://me:1", self.index)
        self.calls: list[MirrorCall] = []

    def step(self, is_reachable: bool = True) -> None:
        call = self.mirror.next_call(self.redis.now)
        if call is None:
            self.redis.now = max(self.redis.now, self.mirror.wake_at)
        elif not is_reachable:
            self.mirror.unreachable(self.redis.now)
        else:
            self.calls.append(call)
            result = self.redis.carry_out(call)
            if call.script == "read_changes" and not result:
                self.redis.now += READ_BLOCK_MS / 1000
            self.mirror.replied(call, result, self.redis.now)

    def run(self, seconds: float = 3 * LOOK_FOR_NODES_S) -> None:
        until = self.redis.now + seconds
        while self.redis.now < until:
            self.step()

    def owned(self, node: Node) -> set[PageHash]:
        return set(self.index.pages(node))

    def num_calls(self, script: str) -> int:
        return sum(call.script == script for call in self.calls)


def test_changes_of_all_nodes_are_followed() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:8])
    m.run()
    m.redis.change(P0, PAGES[8:10], removed=PAGES[6:8])
    m.redis.change(P1, PAGES[:2])
    m.run()
    assert m.owned(P0) == {*PAGES[:6], *PAGES[8:10]} and m.owned(P1) == set(PAGES[:2])
    assert m.mirror.is_connected and m.mirror.num_reloads == 0
    assert m.num_calls("announce") >= 3


def test_reads_of_many_streams_are_spaced_and_lose_nothing() -> None:
    """Each read looks at all streams, so with many nodes it waits for more changes to come."""
    m = Mirroring()
    nodes = [Node(f"n{number}", 1) for number in range(200)]
    for node in nodes:
        m.redis.change(node, PAGES[:1])
    m.run(1.0)
    read_at: list[float] = []
    for number in range(400):
        m.redis.change(nodes[number % 200], [b"%016d" % number])
        num_reads = m.num_calls("read_changes")
        m.step()
        if m.num_calls("read_changes") > num_reads:
            read_at.append(m.redis.now)
    gaps = [after - before for before, after in itertools.pairwise(read_at)]
    assert len(gaps) > 20 and min(gaps) >= 200 * STREAM_S - 1e-9
    m.run()
    assert all(m.index.num_pages(node) == 3 for node in nodes)
    assert m.mirror.num_reloads == 0


def test_a_gap_is_noticed_and_the_set_is_read_again() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:4])
    m.run()
    m.redis.change(P0, [PAGES[4]], removed=[PAGES[0]], is_lost=True)
    m.redis.change(P0, [PAGES[5]])
    m.run()
    assert m.owned(P0) == set(PAGES[1:6]) and m.mirror.num_reloads == 1


def test_a_last_entry_that_was_lost_is_noticed_by_the_second_look() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:4])
    m.run()
    m.redis.change(P0, [PAGES[4]], is_lost=True)
    m.run(4 * LOOK_FOR_NODES_S)
    assert m.owned(P0) == set(PAGES[:5])


def test_a_reload_entry_makes_the_set_be_read() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:8])
    m.run()
    m.redis.change(P0, removed=PAGES[:6], is_lost=True)
    m.redis.change(P0, kind=b"reload")
    m.run()
    assert m.owned(P0) == set(PAGES[6:8])


def test_a_set_that_is_being_rewritten_is_left_alone() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:4])
    m.run()
    number, m.redis.sequences[P0] = m.redis.sequences[P0], None
    m.redis.pages[P0] = []
    m.run()
    assert m.owned(P0) == set(PAGES[:4])
    m.redis.sequences[P0] = number
    m.redis.change(P0, PAGES[:2], kind=b"reload")
    m.run()
    assert m.owned(P0) == set(PAGES[:2])


def test_a_record_that_went_back_is_read_again() -> None:
    m = Mirroring()
    for page in PAGES[:6]:
        m.redis.change(P0, [page])
    m.run()
    m.redis.sequences[P0] = 4
    m.redis.pages[P0] = PAGES[:4]
    m.redis.streams[ownership.NodeKeys.of(P0).changes][4:] = []
    m.run()
    assert m.owned(P0) == set(PAGES[:4]) and m.mirror.num_reloads == 1


def test_a_node_whose_lease_has_ended_owns_nothing() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:4])
    m.redis.change(P1, PAGES[:4])
    m.run()
    m.redis.lose(P0)
    m.run()
    assert m.owned(P0) == set() and m.owned(P1) == set(PAGES[:4])


def test_changes_during_a_load_are_replayed_after_it() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:12])
    while m.num_calls("scan_pages") < 2:
        m.step()
    m.redis.change(P0, [PAGES[20]], removed=[PAGES[0], PAGES[11]])
    m.run()
    assert m.owned(P0) == {*PAGES[1:11], PAGES[20]}


def test_a_load_that_breaks_off_leaves_nothing_of_an_unknown_node() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:12])
    while m.num_calls("scan_pages") < 2:
        m.step()
    assert m.owned(P0)
    m.step(is_reachable=False)
    assert m.owned(P0) == set() and not m.mirror.is_connected
    assert m.mirror.next_call(m.redis.now) is None
    assert m.mirror.wake_at == m.redis.now + RETRY_S
    m.run()
    assert m.owned(P0) == set(PAGES[:12]) and m.mirror.is_connected


def test_while_redis_is_gone_the_index_stays_as_it_is() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:4])
    m.run()
    for _ in range(20):
        m.step(is_reachable=False)
    assert m.owned(P0) == set(PAGES[:4]) and not m.mirror.is_connected


def test_a_mirror_that_is_wrong_is_mended_when_asked() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:8])
    m.run()
    m.index.removed(P0, PAGES[:2])
    m.index.stored(P0, [PAGES[30]])
    assert m.mirror.ask_for_load(P0) and m.mirror.is_loading(P0)
    assert not m.mirror.ask_for_load(P1)
    m.run()
    assert m.owned(P0) == set(PAGES[:8]) and not m.mirror.is_loading(P0)


def test_a_draining_record_that_redis_lost_is_written_again() -> None:
    m = Mirroring()
    m.redis.draining = {b"p0": b"7", b"p1": b"0"}
    m.run()
    assert m.mirror.drain_marks == {"p0": "7"}
    m.redis.draining = {}
    m.run()
    assert m.redis.draining == {b"p0": b"7"} and m.mirror.drain_marks == {"p0": "7"}
    m.redis.draining = {b"p0": b"0"}
    m.run()
    assert m.mirror.drain_marks == {}


def test_the_mark_of_a_node_that_has_left_is_not_written_again() -> None:
    m = Mirroring()
    m.redis.draining = {b"p0": b"7"}
    m.run()
    assert m.mirror.drain_marks == {"p0": "7"}
    m.redis.draining = {b"": b"0"}
    m.run()
    assert m.mirror.drain_marks == {} and m.redis.draining == {b"": b"0"}


def test_a_record_of_another_version_is_left_out() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:4])
    m.redis.change(P1, PAGES[:4])
    m.redis.leases[P1] = b"from the future"
    m.run()
    assert m.owned(P0) == set(PAGES[:4]) and m.owned(P1) == set()


def test_much_that_was_read_at_once_is_applied_in_parts() -> None:
    """Whoever shares the thread has its turn in between."""
    m = Mirroring()
    m.redis.change(P0, PAGES[:1])
    m.run()
    num_pages = BYTES_AT_ONCE // 16
    for part in range(3):
        pages = [b"%016d" % (part * num_pages + i) for i in range(num_pages)]
        m.redis.change(P0, pages)
    sizes = set()
    while m.index.num_pages(P0) < 3 * num_pages + 1:
        m.step()
        sizes.add(m.index.num_pages(P0))
    assert len(sizes) >= 3


def test_the_lag_is_the_age_of_the_newest_change() -> None:
    m = Mirroring()
    m.redis.change(P0, PAGES[:1])
    m.run()
    m.redis.change(P0, PAGES[1:2])
    m.redis.now += 0.25
    m.run(1.0)
    assert 0.2 < m.mirror.lag_s < 0.5

"""Follows the ownership record in Redis into the `PrefixIndex`, and announces this coordinator.

Redis may be gone: the index stays as it is, and routing goes on. A gap in a node's sequence, a
`reload` entry, a record that went back or an unknown node make the node's whole set be read.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from coordinator.ownership.index import PrefixIndex
from coordinator.ownership.redis_index import HASHES_PER_SCAN, RedisIndex
from protocol.hashing import PageHash, split_hashes
from protocol.ids import Node
from protocol.redis import ownership
from protocol.redis.client import REDIS_ERRORS, connect_async

log = logging.getLogger(__name__)

READ_BLOCK_MS = 100
ENTRIES_PER_READ = 200
BYTES_BETWEEN_YIELDS = 64 * 1024
LOOK_FOR_NODES_S = 0.5
RETRY_S = 0.5
REDIS_TIMEOUT_S = 2.0
ANNOUNCE_LEASE_S = 10.0


@dataclass
class _Position:
    """How far a node's stream was read."""

    stream_id: bytes
    sequence: int
    seen_behind: bytes = b""
    """`stream_id` at the last look for nodes, if the record was ahead of it then."""

    def has_lost(self, recorded: int) -> bool:
        """True if reading on cannot lead to the `recorded` sequence: it went back, or its entries
        have ids before ours (another Redis, with another clock) and were not delivered."""
        is_behind = recorded > self.sequence
        is_stuck = is_behind and self.seen_behind == self.stream_id
        self.seen_behind = self.stream_id if is_behind else b""
        return is_stuck or recorded < self.sequence


class OwnershipFollower:
    """One task; the attributes are for operators and for the audit.

    `connected`: Redis answers. `lag_s`: delay from the newest change's entry into Redis to the
    index. `num_reloads`: sets that were read again. `draining`: names of nodes that get no new
    requests, for all coordinators the same. `record`: asks Redis itself.
    """

    def __init__(self, redis_url: str, address: str, index: PrefixIndex) -> None:
        """`address`: where nodes send this coordinator's heartbeats."""
        self._redis: Any = connect_async(redis_url, REDIS_TIMEOUT_S)
        self._announce = self._redis.register_script(ownership.ANNOUNCE)
        self._address = address
        self._index = index
        self._positions: dict[Node, _Position] = {}
        self._to_load: set[Node] = set()
        self._redis_ahead_s = 0.0
        """Clock of Redis minus clock of the event loop."""
        self._warned = False
        self._stopping = False
        self._lock = asyncio.Lock()
        self.record = RedisIndex(self._redis)
        self.connected = False
        self.lag_s = 0.0
        self.num_reloads = 0
        self.draining: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Until cancelled.

        The work is a task of its own with a flag, because its cancellation may get lost: before
        Python 3.12 `asyncio.wait_for`, which the client uses, drops one that comes as it ends.
        """
        following = asyncio.create_task(self._follow(), name="ownership-streams")
        try:
            await asyncio.wait({following})
            following.result()
        finally:
            self._stopping = True
            following.cancel()
            await asyncio.wait({following})

    async def _follow(self) -> None:
        next_look = 0.0
        clock = asyncio.get_running_loop().time
        while not self._stopping:
            try:
                async with self._lock:
                    if clock() >= next_look:
                        await self._look_for_nodes()
                        next_look = clock() + LOOK_FOR_NODES_S
                    if self._to_load:
                        await self._load(self._to_load.pop())
                    await self._read_streams()
                if not self.connected:
                    log.info("following page ownership in Redis")
                self.connected, self._warned = True, False
            except REDIS_ERRORS as error:
                if not self._warned:
                    log.warning("Redis is unreachable, routing goes on from memory: %s", error)
                self.connected, self._warned = False, True
                next_look = 0.0
                for position in self._positions.values():
                    position.seen_behind = b""  # nothing was read since
                await asyncio.sleep(RETRY_S)

    async def reload(self, node: Node) -> None:
        """Reads the node's whole set again; nothing if it has no lease. Raises REDIS_ERRORS."""
        async with self._lock:
            if node in self._positions:
                await self._load(node)

    async def set_draining(self, name: str, draining: bool) -> None:
        """For all coordinators, until it is taken back. Raises REDIS_ERRORS."""
        async with self._lock:  # a look for nodes that read before must not write after this
            await self._redis.hset(ownership.DRAINING_KEY, name, int(draining))
            self.draining = self.draining | {name} if draining else self.draining - {name}

    async def close(self) -> None:
        try:
            await self._redis.zrem(ownership.COORDINATORS_KEY, self._address)
        except REDIS_ERRORS:
            pass  # the announcement ends by itself
        await self._redis.aclose()

    async def _look_for_nodes(self) -> None:
        clock = asyncio.get_running_loop().time
        asked = clock()
        lease_ms = int(ANNOUNCE_LEASE_S * 1000)
        redis_us = await self._announce(
            keys=[ownership.COORDINATORS_KEY], args=[self._address, lease_ms]
        )
        self._redis_ahead_s = redis_us / 1e6 - (asked + clock()) / 2
        await self._look_for_draining()
        live = await self.record.sequences()
        gone = self._positions.keys() - live.keys()
        for node in gone:
            del self._positions[node]
        self._index.forget(*gone)
        self._to_load &= live.keys()
        for node, sequence in live.items():
            if sequence is None:
                continue  # it writes its set now, and ends with a `reload` entry
            position = self._positions.get(node)
            if position is None or position.has_lost(sequence):
                self._to_load.add(node)

    async def _look_for_draining(self) -> None:
        """What was taken back stays in the record as 0, so none at all means that Redis lost it:
        then this coordinator, and every other, writes what it knows."""
        record = await self._redis.hgetall(ownership.DRAINING_KEY)
        if record:
            names = [name.decode() for name, draining in record.items() if draining == b"1"]
            self.draining = frozenset(names)
        elif self.draining:
            known = dict.fromkeys(self.draining, 1)
            await self._redis.hset(ownership.DRAINING_KEY, mapping=known)

    async def _load(self, node: Node) -> None:
        """Reads the end of the stream, then the set in parts, while both may change.

        Every change after that end is replayed by `_read_streams`, in order, and replaying what
        the parts already show changes nothing. So a page that changed is what its last change
        says; one that did not was owned all the while and in some part, or never and in none.

        The parts go into the index one by one, so that its other users wait for none of them long.
        They come in no order: until the load has ended, the depth of this node, and of no other,
        may be wrong. Pages that the node owned before and no part shows are removed at the end.
        """
        last = await self._redis.xrevrange(ownership.NodeKeys.of(node).changes, count=1)
        if not last:
            return  # gone meanwhile: the next look tells
        stream_id, fields = last[0]
        is_known = self._index.num_pages(node) > 0
        found: set[PageHash] = set()
        try:
            async for blob in self.record.pages_in_parts(node):
                hashes = split_hashes(blob)
                self._index.stored(node, hashes)
                if is_known:
                    found.update(hashes)
        except BaseException:
            if node not in self._positions:
                self._index.forget(node)  # nobody follows it yet, so nobody would forget it
            raise
        owned = self._index.pages(node) if is_known else []
        for start in range(0, len(owned), HASHES_PER_SCAN):
            part = owned[start : start + HASHES_PER_SCAN]
            self._index.removed(node, [page for page in part if page not in found])
            await asyncio.sleep(0)
        if node in self._positions:
            self.num_reloads += 1
        sequence = ownership.Change.from_entry(fields).sequence
        self._positions[node] = _Position(stream_id, sequence)

    async def _read_streams(self) -> None:
        nodes = {
            ownership.NodeKeys.of(node).changes.encode(): node
            for node in self._positions.keys() - self._to_load
        }
        block_ms = None if self._to_load else READ_BLOCK_MS
        if not nodes:
            await asyncio.sleep(0 if block_ms is None else READ_BLOCK_MS / 1000)
            return
        wanted = {key: self._positions[node].stream_id for key, node in nodes.items()}
        reply = await self._redis.xread(wanted, count=ENTRIES_PER_READ, block=block_ms)
        for key, entries in reply:
            await self._apply_all(nodes[key], entries)

    async def _apply_all(self, node: Node, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Applies entries up to the first that makes a load necessary."""
        num_bytes = 0
        for stream_id, fields in entries:
            change = ownership.Change.from_entry(fields)
            if not self._apply(node, stream_id, change):
                self._to_load.add(node)
                return
            num_bytes += len(change.stored) + len(change.removed)
            if num_bytes > BYTES_BETWEEN_YIELDS:
                num_bytes = 0
                await asyncio.sleep(0)
        entered_ms = int(entries[-1][0].partition(b"-")[0])
        now_s = asyncio.get_running_loop().time() + self._redis_ahead_s
        self.lag_s = max(0.0, now_s - entered_ms / 1000)

    def _apply(self, node: Node, stream_id: bytes, change: ownership.Change) -> bool:
        """Applies one entry; False: the node's whole set must be read."""
        position = self._positions[node]
        if change.reload or change.sequence != position.sequence + 1:
            return False
        self._index.removed(node, split_hashes(change.removed))
        self._index.stored(node, split_hashes(change.stored))
        position.stream_id, position.sequence = stream_id, change.sequence
        return True

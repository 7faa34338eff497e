"""Follows the ownership record in Redis into the `PrefixIndex`, and announces this coordinator.

Redis may be gone: the index stays as it is, and routing goes on. A gap in a node's sequence, a
`reload` entry or an unknown node make the node's whole set be read again.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from coordinator.index import PrefixIndex
from protocol import ownership
from protocol.hashing import split_hashes
from protocol.ids import Node
from protocol.messages import NodeInfo

log = logging.getLogger(__name__)

READ_BLOCK_MS = 100
LOOK_FOR_NODES_S = 0.5
RETRY_S = 0.5
CONNECT_TIMEOUT_S = 2.0
ANNOUNCE_LEASE_S = 10.0


@dataclass
class _Position:
    """How far a node's stream was read. `sequence` None: any number may come next."""

    stream_id: bytes
    sequence: int | None


class OwnershipFollower:
    """One task; `connected` tells operators whether Redis answers."""

    def __init__(self, redis_url: str, address: str, index: PrefixIndex) -> None:
        """`address`: where nodes send this coordinator's heartbeats."""
        self._redis: Any = redis.asyncio.Redis.from_url(
            redis_url,
            protocol=2,
            socket_timeout=CONNECT_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
        )
        self._announce = self._redis.register_script(ownership.ANNOUNCE)
        self._address = address
        self._index = index
        self._positions: dict[Node, _Position] = {}
        self._unreadable: set[str] = set()
        self.connected = False
        self._warned = False

    async def run(self) -> None:
        """Until cancelled."""
        next_look = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            try:
                if clock() >= next_look:
                    await self._look_for_nodes()
                    next_look = clock() + LOOK_FOR_NODES_S
                await self._read_streams()
                if not self.connected:
                    log.info("following page ownership in Redis")
                self.connected, self._warned = True, False
            except (RedisError, OSError, asyncio.TimeoutError) as error:
                if not self._warned:
                    log.warning("Redis is unreachable, routing goes on from memory: %s", error)
                self.connected, self._warned = False, True
                next_look = 0.0
                await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        try:
            await self._redis.zrem(ownership.COORDINATORS_KEY, self._address)
        except (RedisError, OSError):
            pass  # the announcement ends by itself
        await self._redis.aclose()

    async def _look_for_nodes(self) -> None:
        lease_ms = int(ANNOUNCE_LEASE_S * 1000)
        await self._announce(keys=[ownership.COORDINATORS_KEY], args=[self._address, lease_ms])
        live = await self._live_nodes()
        for node in live - self._positions.keys():
            await self._load(node)
        for node in self._positions.keys() - live:
            del self._positions[node]
            self._index.forget(node)

    async def _live_nodes(self) -> set[Node]:
        """Those with a lease. A name whose info is gone too is taken off the list; if it lives
        after all, its next renewal puts it back."""
        names = sorted(name.decode() for name in await self._redis.smembers(ownership.NODES_KEY))
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            keys = ownership.NodeKeys.of(Node(name, 0))
            pipe.get(keys.info)
            pipe.exists(keys.lease)
        found = await pipe.execute()
        live = set()
        for name, raw, has_lease in zip(names, found[::2], found[1::2], strict=True):
            if raw is None:
                await self._redis.srem(ownership.NODES_KEY, name)
            elif has_lease and (node := self._node_of(name, raw)) is not None:
                live.add(node)
        return live

    def _node_of(self, name: str, raw: bytes) -> Node | None:
        """None, said once, for a record of another version."""
        try:
            return msgspec.json.decode(raw, type=NodeInfo).node
        except msgspec.DecodeError as error:
            if name not in self._unreadable:
                self._unreadable.add(name)
                log.error("the record of node %s in Redis is ignored: %s", name, error)
            return None

    async def _load(self, node: Node) -> None:
        """Reads the stream's end, then the set: what changes in between is replayed, harmlessly."""
        keys = ownership.NodeKeys.of(node)
        last = await self._redis.xrevrange(keys.changes, count=1)
        stream_id = last[0][0] if last else b"0-0"
        sequence = ownership.Change.from_entry(last[0][1]).sequence if last else None
        hashes = await self._redis.smembers(keys.pages)
        self._index.reload(node, hashes)
        self._positions[node] = _Position(stream_id, sequence)

    async def _read_streams(self) -> None:
        if not self._positions:
            await asyncio.sleep(READ_BLOCK_MS / 1000)
            return
        nodes = {ownership.NodeKeys.of(node).changes.encode(): node for node in self._positions}
        wanted = {key: self._positions[node].stream_id for key, node in nodes.items()}
        for key, entries in await self._redis.xread(wanted, count=1_000, block=READ_BLOCK_MS):
            for stream_id, fields in entries:
                change = ownership.Change.from_entry(fields)
                if not self._apply(nodes[key], stream_id, change):
                    await self._load(nodes[key])
                    break

    def _apply(self, node: Node, stream_id: bytes, change: ownership.Change) -> bool:
        """Applies one entry; False: the node's whole set must be read."""
        position = self._positions[node]
        expected = position.sequence
        if change.reload or (expected is not None and change.sequence != expected + 1):
            return False
        self._index.removed(node, split_hashes(change.removed))
        self._index.stored(node, split_hashes(change.stored))
        position.stream_id, position.sequence = stream_id, change.sequence
        return True

"""`RedisIndex`: which node owns which page, asked of Redis itself.

It answers what the `PrefixIndex` answers from memory, without a mirror and so a round trip later.
The audit compares the two; the follower fills the mirror through it. Keeps no state but what it has
already complained about.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from protocol.hashing import PageHash, join_hashes
from protocol.ids import Node
from protocol.messages import NodeInfo
from protocol.redis import ownership

log = logging.getLogger(__name__)

HASHES_PER_SCAN = 4_000


class RedisIndex:
    """Every method raises one of `protocol.redis_client.REDIS_ERRORS` when Redis fails."""

    def __init__(self, redis: Any) -> None:
        """`redis`: a client as made by `connect_async`; it stays the caller's to close."""
        self._redis = redis
        self._list = redis.register_script(ownership.LIST_NODES)
        self._scan = redis.register_script(ownership.SCAN)
        self._match = redis.register_script(ownership.MATCH)
        self._unreadable: set[str] = set()

    async def sequences(self) -> dict[Node, int | None]:
        """Number of the last change per node with a lease; None: its set is being rewritten."""
        listed = await self._list(keys=[ownership.NODES_KEY], args=[ownership.NODE_PREFIX])
        found: dict[Node, int | None] = {}
        for name, lease, info, sequence in zip(*(listed[i::4] for i in range(4)), strict=True):
            if lease is not None and (node := self._node_of(name.decode(), info)) is not None:
                found[node] = None if sequence is None else int(sequence)
        return found

    async def pages_in_parts(self, node: Node) -> AsyncIterator[bytes]:
        """Blobs of the hashes that the node owns, in no order.

        A page that is owned all the while is in one at least, one that never is in none; one that
        comes or goes meanwhile may be in or not.
        """
        key = ownership.NodeKeys.of(node).pages
        cursor: bytes | int = 0
        while True:
            cursor, blob = await self._scan(keys=[key], args=[cursor, HASHES_PER_SCAN])
            yield blob
            if int(cursor) == 0:
                return

    async def pages(self, node: Node) -> bytes:
        """The hashes that the node owns as one blob; see `pages_in_parts`."""
        return b"".join([blob async for blob in self.pages_in_parts(node)])

    async def match(self, hashes: Sequence[PageHash]) -> dict[Node, int]:
        """Number of leading pages of the chain that each node owns; nodes with none are absent."""
        found = await self._match(
            keys=[ownership.NODES_KEY], args=[ownership.NODE_PREFIX, join_hashes(hashes)]
        )
        return {
            Node(name.decode(), int(incarnation)): depth
            for name, incarnation, depth in zip(found[::3], found[1::3], found[2::3], strict=True)
        }

    def _node_of(self, name: str, info: bytes) -> Node | None:
        """None, said once, for a record of another version."""
        try:
            return msgspec.json.decode(info, type=NodeInfo).node
        except msgspec.DecodeError as error:
            if name not in self._unreadable:
                self._unreadable.add(name)
                log.error("the record of node %s in Redis is ignored: %s", name, error)
            return None

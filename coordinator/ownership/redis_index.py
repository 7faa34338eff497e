"""`RedisIndex`: which node owns which page, asked of Redis itself.

It answers what the `PrefixIndex` answers from memory, without a mirror and so a round trip later.
The audit compares the two; the follower fills the mirror through it. Keeps no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.ownership.mirror import HASHES_PER_SCAN
from protocol.hashing import PageHash, join_hashes
from protocol.ids import Node
from protocol.redis import ownership


class RedisIndex:
    """Answers from Redis. Every method raises one of `protocol.redis.client.REDIS_ERRORS` when
    Redis fails."""

    def __init__(self, redis: Any) -> None:
        """`redis` is a client as `connect_async` makes them. It stays the caller's to close."""
        self._redis = redis
        self._scan = redis.register_script(ownership.SCAN)
        self._match = redis.register_script(ownership.MATCH)

    async def scan(self, key: str, cursor: bytes | int, count: int) -> tuple[bytes | int, bytes]:
        """Returns the next cursor, and some hashes of a node's set, joined.

        A page that is owned during the whole scan is in at least one part, one that never is in
        none; a page that comes or goes meanwhile may be in or not.
        """
        cursor, blob = await self._scan(keys=[key], args=[cursor, count])
        return cursor, blob

    async def pages(self, node: Node) -> bytes:
        """Returns the hashes of all pages that the node owns, joined, in no order."""
        key = ownership.NodeKeys.of(node).pages
        cursor, blob = await self.scan(key, 0, HASHES_PER_SCAN)
        parts = [blob]
        while int(cursor):
            cursor, blob = await self.scan(key, cursor, HASHES_PER_SCAN)
            parts.append(blob)
        return b"".join(parts)

    async def match(self, hashes: Sequence[PageHash]) -> dict[Node, int]:
        """Returns how many leading pages of the chain each node owns; who has none is absent."""
        found = await self._match(
            keys=[ownership.NODES_KEY], args=[ownership.NODE_PREFIX, join_hashes(hashes)]
        )
        return {
            Node(name.decode(), int(incarnation)): depth
            for name, incarnation, depth in zip(found[::3], found[1::3], found[2::3], strict=True)
        }

"""`OwnershipFollower`: carries the calls of the `OwnershipMirror` to Redis."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from coordinator.ownership.index import PrefixIndex
from coordinator.ownership.mirror import MirrorCall, OwnershipMirror
from coordinator.ownership.redis_index import RedisIndex
from protocol.ids import Node
from protocol.redis import coordinators, ownership
from protocol.redis.client import REDIS_ERRORS, connect_async
from protocol.redis.problems import redis_problem

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 2.0


class OwnershipFollower:
    """Keeps an `OwnershipMirror` up to date, in one asyncio task. `mirror` says how far it is, and
    `record` asks Redis itself."""

    def __init__(self, redis_url: str, address: str, index: PrefixIndex) -> None:
        """`address` is where nodes send this coordinator's heartbeats."""
        self.mirror = OwnershipMirror(address, index)
        self._redis_url = redis_url
        self._redis: Any = connect_async(redis_url, REDIS_TIMEOUT_S)
        self.record = RedisIndex(self._redis)
        self._announce = self._redis.register_script(coordinators.ANNOUNCE)
        self._list_leases = self._redis.register_script(ownership.LIST_LEASES)
        self._address = address
        self._reloads: list[tuple[Node, asyncio.Future[None]]] = []
        """Who waits for the set of a node to be read again."""
        self._is_told_connected: bool | None = None
        """What the log said last; None: nothing yet."""
        self._is_stopping = False
        self._lock = asyncio.Lock()
        """Held during a call: what an operator changes comes before or after it."""

    async def run(self) -> None:
        """Follows until it is cancelled.

        The work is a task of its own with a flag, because its cancellation may get lost: before
        Python 3.12 `asyncio.wait_for`, which the client uses, drops one that comes as it ends.
        """
        following = asyncio.create_task(self._follow(), name="ownership-streams")
        try:
            await asyncio.wait({following})
            following.result()
        finally:
            self._is_stopping = True
            following.cancel()
            await asyncio.wait({following})

    async def reload(self, node: Node) -> None:
        """Reads the node's whole set again and waits for that; returns at once if the node has no
        lease. Raises REDIS_ERRORS."""
        if self.mirror.ask_for_load(node):
            done = asyncio.get_running_loop().create_future()
            self._reloads.append((node, done))
            await done

    async def set_drain_mark(self, name: str, mark: str) -> None:
        """Marks a node as draining, or not, in Redis for all coordinators. Raises REDIS_ERRORS."""
        async with self._lock:
            await self._redis.hset(ownership.DRAINING_KEY, name, mark)
            self.mirror.set_drain_mark(name, mark)

    async def close(self) -> None:
        """Removes the announcement of this coordinator from Redis."""
        try:
            withdraw = self._redis.register_script(coordinators.WITHDRAW)
            await withdraw(keys=coordinators.KEYS, args=[self._address])
        except REDIS_ERRORS:
            pass  # the announcement ends by itself
        await self._redis.aclose()

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        mirror = self.mirror
        while not self._is_stopping:
            try:
                async with self._lock:
                    call = mirror.next_call(clock())
                    if call is not None:
                        mirror.replied(call, await self._carry_out(call), clock())
                self._tell_connected()
                self._end_reloads(None)
            except REDIS_ERRORS as error:
                mirror.unreachable(clock())
                self._tell_unreachable(error)
                self._end_reloads(error)
                call = None
            if call is None:
                # Also for no time at all: the loop's other users have their turn.
                await asyncio.sleep(max(0.0, mirror.wake_at - clock()))

    async def _carry_out(self, call: MirrorCall) -> Any:
        redis = self._redis
        if call.script == "announce":
            args = [coordinators.OUR_VERSIONS, *call.args]
            return await self._announce(keys=coordinators.KEYS, args=args)
        if call.script == "read_draining":
            return await redis.hgetall(ownership.DRAINING_KEY)
        if call.script == "write_draining":
            return await redis.hset(ownership.DRAINING_KEY, mapping=call.args[0])
        if call.script == "list_leases":
            keys, args = [ownership.NODES_KEY], [ownership.NODE_PREFIX]
            return await self._list_leases(keys=keys, args=args)
        if call.script == "last_change":
            return await redis.xrevrange(*call.args, count=1)
        if call.script == "scan_pages":
            return await self.record.scan(*call.args)
        positions, count, block_ms = call.args
        return await redis.xread(positions, count=count, block=block_ms)

    def _tell_connected(self) -> None:
        if self.mirror.is_connected and not self._is_told_connected:
            log.info("following page ownership in Redis")
            self._is_told_connected = True

    def _tell_unreachable(self, error: Exception) -> None:
        problem = redis_problem(error, self._redis_url)
        if self._is_told_connected is None:
            log.warning(
                "no node can find this coordinator, and /generate is refused; HTTP is served, and "
                "Redis is tried again until it is there: %s",
                problem,
            )
        elif self._is_told_connected:
            log.warning(
                "routing goes on from memory with the nodes and pages known so far; until Redis is "
                "back new nodes stay unknown, and sessions, pauses and draining are refused: %s",
                problem,
            )
        self._is_told_connected = False

    def _end_reloads(self, error: Exception | None) -> None:
        """Wakes those that wait for a `reload` which is done; all of them, with `error`, if Redis
        fails."""
        waiting, self._reloads = self._reloads, []
        for node, done in waiting:
            if done.done():
                continue  # who waited has given up
            if error is not None:
                done.set_exception(error)
            elif not self.mirror.is_loading(node):
                done.set_result(None)
            else:
                self._reloads.append((node, done))

"""Keeps Redis true about one node: its lease, its info, and the pages it owns.

One thread. Redis may be slow, gone or emptied: the node never waits for it. The thread keeps the
set of owned hashes in memory, and whenever Redis may differ (it was unreachable, the lease ended,
it came back empty) it registers again and writes the whole set.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

import msgspec
import redis

from engine.cache import CacheChange
from protocol import ownership
from protocol.hashing import PageHash, join_hashes
from protocol.messages import NodeInfo

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 2.0
RETRY_S = 0.5
HASHES_PER_WRITE = 10_000
COORDINATOR_KEPT_S = 300.0


class OwnershipPublisher:
    """Call `publish` after every step; read `coordinators` for who wants heartbeats.

    `on_replaced` is called (on this thread) when a newer life of the same node has registered.
    """

    def __init__(
        self, redis_url: str, info: NodeInfo, lease_s: float, on_replaced: Callable[[], None]
    ) -> None:
        self.coordinators: tuple[str, ...] = ()
        self._redis = redis.Redis.from_url(
            redis_url,
            protocol=2,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )
        self._info = info
        self._keys = ownership.NodeKeys.of(info.node)
        self._lease_s = lease_s
        self._on_replaced = on_replaced
        self._register = self._redis.register_script(ownership.REGISTER)
        self._renew = self._redis.register_script(ownership.RENEW)
        self._apply = self._redis.register_script(ownership.APPLY)
        self._release = self._redis.register_script(ownership.RELEASE)
        self._list = self._redis.register_script(ownership.LIST_COORDINATORS)
        self._coordinators_seen: dict[str, float] = {}
        self._next_renewal = 0.0
        self._owned: set[PageHash] = set()
        self._pending: list[CacheChange] = []
        self._sequence = 0
        self._registered = False
        self._reachable = True
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ownership", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def publish(self, changes: Iterable[CacheChange]) -> None:
        """Queues changes, in order; returns at once."""
        with self._lock:
            self._pending.extend(changes)
        self._work.set()

    def close(self) -> None:
        """Ends the lease, so that nobody counts on this node any more."""
        self._stopping = True
        self._work.set()
        self._thread.join(timeout=2 * REDIS_TIMEOUT_S + RETRY_S)
        self._redis.close()

    def _run(self) -> None:
        while not self._stopping:
            self._work.wait(max(0.0, self._next_renewal - time.monotonic()))
            self._work.clear()
            try:
                self._write_changes()
                if time.monotonic() >= self._next_renewal:
                    self._next_renewal = time.monotonic() + self._lease_s / 3
                    self._renew_lease()
                    self._reachable = True
            except redis.RedisError as error:
                if self._reachable:
                    log.warning("Redis is unreachable, serving goes on without it: %s", error)
                self._reachable = self._registered = False
                self._next_renewal = time.monotonic() + RETRY_S
        try:
            if self._registered:
                self._give_up_lease()
        except redis.RedisError as error:
            log.warning("could not give up the lease in Redis: %s", error)

    def _give_up_lease(self) -> None:
        released = self._release(self._keys.all(), [self._info.node.incarnation])
        if released == ownership.APPLIED:
            self._redis.srem(ownership.NODES_KEY, self._info.node.name)

    def _write_changes(self) -> None:
        """Applies the queued changes to `_owned`, and to Redis as far as it is in step."""
        with self._lock:
            changes, self._pending = self._pending, []
        for change in changes:
            self._owned.difference_update(change.removed)
            self._owned.update(change.stored)
        if not self._registered:
            return
        for change in changes:
            self._write("change", change.stored, change.removed)

    def _renew_lease(self) -> None:
        if not self._registered:
            self._register_and_write_all()
        else:
            result = self._renew(
                self._keys.all(), [self._info.node.incarnation, int(self._lease_s * 1000)]
            )
            self._check(result)
        self._redis.sadd(ownership.NODES_KEY, self._info.node.name)
        self._look_for_coordinators()

    def _look_for_coordinators(self) -> None:
        """Heartbeats go on for a while to one that is not announced: it may be without Redis."""
        now = time.monotonic()
        for address in self._list([ownership.COORDINATORS_KEY]):
            self._coordinators_seen[address.decode()] = now
        self._coordinators_seen = {
            address: seen
            for address, seen in self._coordinators_seen.items()
            if now - seen < COORDINATOR_KEPT_S
        }
        self.coordinators = tuple(self._coordinators_seen)

    def _register_and_write_all(self) -> None:
        node = self._info.node
        result = self._register(
            self._keys.all(),
            [node.incarnation, int(self._lease_s * 1000), msgspec.json.encode(self._info)],
        )
        self._check(result)
        if result != ownership.APPLIED:
            return
        self._registered = True
        hashes = list(self._owned)
        for start in range(0, len(hashes), HASHES_PER_WRITE):
            self._write("part", hashes[start : start + HASHES_PER_WRITE], [])
        self._write("reload", [], [])
        log.info("registered in Redis as %s with %d owned pages", node, len(hashes))

    def _write(self, kind: str, stored: list[PageHash], removed: list[PageHash]) -> None:
        if not self._registered:
            return
        self._sequence += 1
        result = self._apply(
            self._keys.all(),
            [
                self._info.node.incarnation,
                self._sequence,
                kind,
                join_hashes(stored),
                join_hashes(removed),
                ownership.STREAM_MAX_LENGTH,
            ],
        )
        self._check(result)

    def _check(self, result: int) -> None:
        if result == ownership.LEASE_MISSING:
            log.warning(
                "the lease of %s is not in Redis any more, registering again", self._info.node
            )
            self._registered = False
            self._next_renewal = 0.0
            self._work.set()
        elif result == ownership.FENCED:
            self._registered = False
            self._stopping = True
            self._on_replaced()

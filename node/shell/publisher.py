"""Keeps Redis true about one node: its lease, its info, and the pages it owns.

One thread. Redis may be slow, gone or emptied: the node never waits for it. The thread keeps the
owned hashes in memory, and whenever Redis may differ (it was unreachable, the lease ended, it came
back empty, it lost changes in a failover) it registers again and writes the whole set.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from engine.cache.prefix_cache import CacheChange
from protocol.hashing import PageHash, join_hashes
from protocol.messages import NodeInfo
from protocol.redis import ownership
from protocol.redis.client import REDIS_ERRORS, connect

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 2.0
RETRY_S = 0.5
HASHES_PER_FILL = 5_000
COORDINATOR_KEPT_S = 300.0


class OwnershipPublisher:
    """Call `publish` after every step; read `coordinators` for who wants heartbeats.

    `on_replaced` is called (on this thread) when a newer life of the same node has registered.
    """

    def __init__(
        self, redis_url: str, info: NodeInfo, lease_s: float, on_replaced: Callable[[], None]
    ) -> None:
        self.coordinators: tuple[str, ...] = ()
        self._redis_url = redis_url
        self._redis: Any = None
        self._info = info
        self._keys = ownership.NodeKeys.of(info.node)
        self._lease_s = lease_s
        self._on_replaced = on_replaced
        self._coordinators_seen: dict[str, float] = {}
        self._next_renewal = 0.0
        self._owned: dict[PageHash, None] = {}
        """In the order of storing, so that parents come before children."""
        self._pending: list[CacheChange] = []
        self._sequence = 0
        self._registered = False
        self._republish = False
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

    def republish(self) -> None:
        """Has the whole set written again, soon; any thread may call."""
        self._republish = True
        self._work.set()

    def close(self) -> None:
        """Ends the lease, so that nobody counts on this node any more."""
        self._stopping = True
        self._work.set()
        self._thread.join(timeout=2 * REDIS_TIMEOUT_S + RETRY_S)
        self._disconnect()

    def _run(self) -> None:
        while not self._stopping:
            self._work.wait(max(0.0, self._next_renewal - time.monotonic()))
            self._work.clear()
            try:
                self._write_changes()
                if self._republish:
                    self._republish, self._registered, self._next_renewal = False, False, 0.0
                if time.monotonic() >= self._next_renewal:
                    self._next_renewal = time.monotonic() + self._lease_s / 3
                    self._renew_lease()
                    self._reachable = True
            except REDIS_ERRORS as error:
                if self._reachable:
                    log.warning("Redis is unreachable, serving goes on without it: %s", error)
                self._reachable = self._registered = False
                self._next_renewal = time.monotonic() + RETRY_S
                self._disconnect()
        try:
            if self._registered:
                self._give_up_lease()
        except REDIS_ERRORS as error:
            log.warning("could not give up the lease in Redis: %s", error)

    def _disconnect(self) -> None:
        """The next connection is made afresh: after a failover to another master."""
        client, self._redis = self._redis, None
        if client is not None:
            client.close()

    def _call(self, script: str, *args: int | str | bytes) -> int:
        """Runs a script of one node; `args` follow incarnation and lease."""
        lease_ms = int(self._lease_s * 1000)
        run = self._redis.register_script(script)
        return int(run(self._keys.all(), [self._info.node.incarnation, lease_ms, *args]))

    def _write(self, script: str, *args: int | str | bytes) -> bool:
        """False: refused, and the node registers again or stops."""
        result = self._call(script, *args)
        if result == ownership.LOST:
            log.warning("Redis lost the record of %s, writing it again", self._info.node)
            self._registered = False
            self._next_renewal = 0.0
            self._work.set()
        elif result == ownership.FENCED:
            self._registered = False
            self._stopping = True
            self._on_replaced()
        return result == ownership.APPLIED

    def _give_up_lease(self) -> None:
        if self._call(ownership.RELEASE) == ownership.APPLIED:
            self._redis.srem(ownership.NODES_KEY, self._info.node.name)

    def _write_changes(self) -> None:
        """Applies the queued changes to `_owned`, and to Redis as far as it is in step."""
        with self._lock:
            changes, self._pending = self._pending, []
        for change in changes:
            for page_hash in change.removed:
                self._owned.pop(page_hash, None)
            self._owned.update(dict.fromkeys(change.stored))
        for change in _joined(changes):
            if not self._registered:
                return
            self._sequence += 1
            stored, removed = join_hashes(change.stored), join_hashes(change.removed)
            entry = ownership.Change(self._sequence, False, stored, removed)
            self._write(ownership.APPLY, *entry.args())

    def _renew_lease(self) -> None:
        if self._redis is None:
            self._redis = connect(self._redis_url, REDIS_TIMEOUT_S)
        if self._registered:
            self._write(ownership.RENEW, self._sequence)
        else:
            self._registered = self._register_and_write_all()
        self._redis.sadd(ownership.NODES_KEY, self._info.node.name)
        self._look_for_coordinators()

    def _look_for_coordinators(self) -> None:
        """Heartbeats go on for a while to one that is not announced: it may be without Redis."""
        now = time.monotonic()
        look = self._redis.register_script(ownership.LIST_COORDINATORS)
        for address in look([ownership.COORDINATORS_KEY]):
            self._coordinators_seen[address.decode()] = now
        self._coordinators_seen = {
            address: seen
            for address, seen in self._coordinators_seen.items()
            if now - seen < COORDINATOR_KEPT_S
        }
        self.coordinators = tuple(self._coordinators_seen)

    def _register_and_write_all(self) -> bool:
        """Every part renews the lease, so a rewrite may take longer than the lease."""
        if not self._write(ownership.REGISTER, msgspec.json.encode(self._info)):
            return False
        hashes = list(self._owned)
        for start in range(0, len(hashes), HASHES_PER_FILL):
            part = join_hashes(hashes[start : start + HASHES_PER_FILL])
            if not self._write(ownership.FILL, part):
                return False
        self._sequence += 1
        end = ownership.Change(self._sequence, reload=True, stored=b"", removed=b"")
        if not self._write(ownership.COMPLETE, *end.args()):
            return False
        log.info("registered in Redis as %s with %d owned pages", self._info.node, len(hashes))
        return True


def _joined(changes: Sequence[CacheChange]) -> Iterator[CacheChange]:
    """Fewer, longer changes with the same effect: one call per change is slow when they pile up.

    A change is applied whole, so what a page was in between is seen by nobody, and the set is
    prefix-closed after each, as it was in the node.
    """
    owned: dict[PageHash, bool] = {}
    for change in (part for each in changes for part in _parts(each)):
        num_hashes = len(change.removed) + len(change.stored)
        if owned and len(owned) + num_hashes > ownership.HASHES_PER_CHANGE:
            yield _split(owned)
            owned = {}
        owned.update(dict.fromkeys(change.removed, False))
        owned.update(dict.fromkeys(change.stored, True))
    if owned:
        yield _split(owned)


def _parts(change: CacheChange) -> Iterator[CacheChange]:
    """A long change, as a flush, in pieces: it removes children before parents and stores parents
    before children, so the set is prefix-closed after each."""
    size = ownership.HASHES_PER_CHANGE
    for start in range(0, len(change.removed), size):
        yield CacheChange(change.removed[start : start + size], [])
    for start in range(0, len(change.stored), size):
        yield CacheChange([], change.stored[start : start + size])


def _split(owned: dict[PageHash, bool]) -> CacheChange:
    return CacheChange(
        removed=[page_hash for page_hash, is_owned in owned.items() if not is_owned],
        stored=[page_hash for page_hash, is_owned in owned.items() if is_owned],
    )

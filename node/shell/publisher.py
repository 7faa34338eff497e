"""Carries the calls of an `OwnershipWriter` to Redis, on a thread of its own.

Redis may be slow, gone or emptied: the node never waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from engine.cache.prefix_cache import CacheChange
from node.ownership.ownership_writer import RETRY_S, OwnershipCall, OwnershipWriter
from protocol.messages import NodeInfo
from protocol.redis import coordinators, ownership
from protocol.redis.client import REDIS_ERRORS, connect
from protocol.redis.problems import redis_problem

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 2.0

NODE_SCRIPTS = {
    "register": ownership.REGISTER,
    "fill": ownership.FILL,
    "complete": ownership.COMPLETE,
    "apply": ownership.APPLY,
    "renew": ownership.RENEW,
    "release": ownership.RELEASE,
}
MARK_SCRIPTS = {
    "mark_draining": ownership.MARK_DRAINING,
    "forget_mark": ownership.FORGET_MARK,
}


class OwnershipPublisher:
    """Keeps the node's record in Redis true: call `publish` after every step. `coordinators` says
    who wants heartbeats.

    `on_replaced` is called, on the publisher's thread, when a newer incarnation of the node has
    registered.
    """

    def __init__(
        self, redis_url: str, info: NodeInfo, lease_s: float, on_replaced: Callable[[], None]
    ) -> None:
        self._redis_url = redis_url
        self._redis: Any = None
        self._info = info
        self._lease_ms = int(lease_s * 1000)
        self._on_replaced = on_replaced
        self._writer = OwnershipWriter(info, lease_s)
        """Belongs to the thread."""
        self._spoken_with = coordinators.SpokenWith()
        self._lock = threading.Lock()
        self._inbox: list[CacheChange] = []
        self._wants_republish = False
        self._when_marked: Callable[[bool], None] | None = None
        """Whom the writer is to tell what became of the mark that is wished for."""
        self._is_closing = False
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ownership", daemon=True)

    @property
    def coordinators(self) -> tuple[str, ...]:
        """The control addresses of the coordinators that want heartbeats."""
        return self._writer.coordinators

    def start(self) -> None:
        """Starts the thread that talks to Redis."""
        self._thread.start()

    def publish(self, changes: Iterable[CacheChange]) -> None:
        """Queues changes of the pages that this node owns, to be written to Redis in this order.
        Returns at once."""
        with self._lock:
            self._inbox.extend(changes)
        self._work.set()

    def republish(self) -> None:
        """Has the whole set written again, soon; any thread may call."""
        self._wants_republish = True
        self._work.set()

    def mark_draining(self, on_done: Callable[[bool], None]) -> None:
        """Marks the node in Redis as one that gets no new requests, until it ends. Calls `on_done`,
        on the publisher's thread, with whether that is written."""
        self._when_marked = on_done
        self._work.set()

    def close(self) -> None:
        """Ends the lease, so that nobody counts on this node any more."""
        self._is_closing = True
        self._work.set()
        self._thread.join(timeout=2 * REDIS_TIMEOUT_S + RETRY_S)
        self._disconnect()

    def _run(self) -> None:
        while not self._writer.is_over:
            self._tell_writer()
            call = self._writer.next_call(time.monotonic())
            if call is not None:
                self._carry(call)
            elif not self._is_closing:
                self._work.wait(max(0.0, self._writer.wake_at - time.monotonic()))
                self._work.clear()
        if self._writer.is_replaced:
            self._on_replaced()

    def _tell_writer(self) -> None:
        """Passes on to the writer what other threads have asked for."""
        with self._lock:
            changes, self._inbox = self._inbox, []
        self._writer.publish(changes)
        if self._wants_republish:
            self._wants_republish = False
            self._writer.republish()
        if self._when_marked is not None:
            self._writer.mark_draining(self._when_marked)
            self._when_marked = None
        if self._is_closing:
            self._writer.close()

    def _carry(self, call: OwnershipCall) -> None:
        try:
            result = self._call(call)
        except REDIS_ERRORS as error:
            if self._writer.unreachable(time.monotonic()):
                problem = redis_problem(error, self._redis_url)
                log.warning("serving goes on without Redis: %s", problem)
            self._disconnect()
        else:
            self._writer.replied(call, result, time.monotonic())

    def _call(self, call: OwnershipCall) -> Any:
        if self._redis is None:
            self._redis = connect(self._redis_url, REDIS_TIMEOUT_S)
        if call.script == "announce_name":
            return self._redis.sadd(ownership.NODES_KEY, *call.args)
        if call.script == "forget_name":
            return self._redis.srem(ownership.NODES_KEY, *call.args)
        if call.script == "list_coordinators":
            look = self._redis.register_script(coordinators.LIST_COORDINATORS)
            return self._spoken_with.among(look(coordinators.KEYS))
        node = self._info.node
        if call.script in MARK_SCRIPTS:
            mark = self._redis.register_script(MARK_SCRIPTS[call.script])
            return mark([ownership.DRAINING_KEY], [node.name, node.incarnation])
        run = self._redis.register_script(NODE_SCRIPTS[call.script])
        keys = ownership.NodeKeys.of(node).all()
        return int(run(keys, [node.incarnation, self._lease_ms, *call.args]))

    def _disconnect(self) -> None:
        """Drops the connection. The next one is made afresh, which after a failover finds the new
        master."""
        client, self._redis = self._redis, None
        if client is not None:
            client.close()

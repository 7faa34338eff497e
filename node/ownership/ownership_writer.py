"""`OwnershipWriter`: keeps Redis true about one node: its lease, its info, and the pages it owns.
Pure: it says which call comes next, and somebody carries it to Redis.

    next_call ──► register · fill … · complete ──► apply, apply, …   renew every third of a lease
        ▲                                               │
        └──── the record is lost, Redis is unreachable, or a rewrite is wished for

The writer keeps the owned hashes in memory, and whenever Redis may differ it registers again and
writes the whole set. At every moment the set in Redis is prefix-closed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from engine.cache.prefix_cache import CacheChange
from node.ownership.joined_changes import joined_changes
from protocol.hashing import PageHash, join_hashes
from protocol.messages import NodeInfo
from protocol.redis import ownership

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""How long an unreachable Redis is left alone."""
RENEWALS_PER_LEASE = 3
HASHES_PER_FILL = 5_000
COORDINATOR_KEPT_S = 300.0
"""A coordinator that is not announced any more may be without Redis: heartbeats go on so long."""

Script = Literal[
    "register",
    "fill",
    "complete",
    "apply",
    "renew",
    "release",
    "mark_draining",
    "forget_mark",
    "announce_name",
    "forget_name",
    "list_coordinators",
]


@dataclass(frozen=True)
class OwnershipCall:
    """One call of a script in `protocol.redis.ownership`, or of a command with its effect."""

    script: Script
    args: tuple[int | str | bytes, ...] = ()
    """What follows incarnation and lease, for a script of one node; the node's name for
    `announce_name` and `forget_name`."""


class OwnershipWriter:
    """Says which call to Redis comes next. One call is under way at a time: each `next_call` is
    followed by `replied` or `unreachable`.

    While Redis cannot be reached, or a newer incarnation of the node has taken its place, nothing
    is lost: the owned set goes on following the changes.
    """

    def __init__(self, info: NodeInfo, lease_s: float) -> None:
        self.coordinators: tuple[str, ...] = ()
        """Addresses of coordinators that want heartbeats."""
        self.is_replaced = False
        """A newer incarnation of the node has registered: this one may write no more."""
        self.wake_at = 0.0
        """When there is something to do again although nothing was published."""
        self._info = info
        self._lease_s = lease_s
        self._coordinators_seen: dict[str, float] = {}
        self._pending: list[CacheChange] = []
        """Published, and not yet in the owned set."""
        self._owned: dict[PageHash, None] = {}
        """What the node owns, in the order of storing, so that parents come before children."""
        self._unwritten: deque[CacheChange] = deque()
        """Changes that the owned set has and Redis lacks; it has everything else."""
        self._round: deque[OwnershipCall] = deque()
        """What is left of a renewal or a rewrite."""
        self._sequence = 0
        """Number of the last change; it grows with every try."""
        self._is_registered = False
        self._has_lease = False
        self._is_listed = False
        """The node's name stands in the set of names."""
        self._wants_rewrite = False
        self._on_marked: Callable[[bool], None] | None = None
        """Whom to tell what becomes of the mark that is wished for; None without such a wish."""
        self._has_mark = False
        self._is_reachable = True
        self._is_closing = False

    @property
    def is_over(self) -> bool:
        """True once no call will come any more."""
        return self.is_replaced or (self._is_closing and self._closing_call() is None)

    @property
    def owned(self) -> list[PageHash]:
        """Returns all pages that were published as owned, parents before children."""
        self._absorb()
        return list(self._owned)

    def publish(self, changes: Iterable[CacheChange]) -> None:
        """Takes changes of the owned set, in their order."""
        self._pending += changes

    def republish(self) -> None:
        """Has the whole set written again, once the calls under way are done."""
        self._wants_rewrite = True

    def mark_draining(self, on_done: Callable[[bool], None]) -> None:
        """Makes the next call mark the node as draining. `on_done` is told whether Redis has taken
        the mark: there is one try, since who asks is about to stop."""
        self._on_marked = on_done

    def close(self) -> None:
        """Makes the next call end the lease, so that nobody counts on this node any more."""
        self._is_closing = True

    def next_call(self, now: float) -> OwnershipCall | None:
        """Returns what to call now; None if nothing is due before `wake_at`, unless more is
        published."""
        if self.is_replaced:
            return None
        if self._is_closing:
            return self._closing_call()
        if self._on_marked is not None:
            return OwnershipCall("mark_draining")
        # A renewal goes before changes: a node with many changes must not lose its lease.
        if not self._round and (self._wants_rewrite or now >= self.wake_at):
            self._begin_round(now)
        if self._round:
            return self._round[0]
        self._absorb()
        if not self._unwritten:
            return None
        # The number grows with every try: one that has failed may have been carried out.
        self._sequence += 1
        change = self._unwritten[0]
        stored, removed = join_hashes(change.stored), join_hashes(change.removed)
        entry = ownership.Change(self._sequence, False, stored, removed)
        return OwnershipCall("apply", tuple(entry.args()))

    def replied(self, call: OwnershipCall, result: Any, now: float) -> None:
        """Takes what Redis answered: APPLIED, LOST or FENCED for the scripts of a node, addresses
        for `list_coordinators`, anything for other calls."""
        self._is_reachable = True
        if call.script in ("announce_name", "forget_name"):
            self._is_listed = call.script == "announce_name"
        elif call.script == "mark_draining":
            self._has_mark = True
            self._tell_marked(True)
        elif call.script == "forget_mark":
            self._has_mark = False
        elif call.script == "list_coordinators":
            self._see_coordinators(result, now)
        elif result == ownership.APPLIED:
            self._applied(call)
        else:
            self._refused(call, result, now)
            return
        if self._round and call is self._round[0]:
            self._round.popleft()

    def unreachable(self, now: float) -> bool:
        """Notes that the call failed. Redis may have carried it out or not, so everything is
        written again when Redis is back. Returns whether Redis was reachable before."""
        was_reachable, self._is_reachable = self._is_reachable, False
        self._forget_record()
        self._is_listed = False
        # A mark that is there may be removed later, but nobody waits for Redis to stop.
        self._has_mark = self._has_mark and not self._is_closing
        self.wake_at = now + RETRY_S
        self._tell_marked(False)
        return was_reachable

    def _begin_round(self, now: float) -> None:
        """Queues the calls of one round: the lease is renewed, or everything is written if Redis
        may lack it; then the node is listed again, and coordinators are looked for.

        Every call of a rewrite renews the lease, so it may take longer than the lease.
        """
        self.wake_at = now + self._lease_s / RENEWALS_PER_LEASE
        if self._wants_rewrite:
            self._wants_rewrite = False
            self._forget_record(keeps_lease=True)
        if self._is_registered:
            self._round.append(OwnershipCall("renew", (self._sequence,)))
        else:
            self._round += self._rewrite()
        self._round.append(OwnershipCall("announce_name", (self._info.node.name,)))
        self._round.append(OwnershipCall("list_coordinators"))

    def _rewrite(self) -> list[OwnershipCall]:
        hashes = self.owned
        parts = [
            join_hashes(hashes[start : start + HASHES_PER_FILL])
            for start in range(0, len(hashes), HASHES_PER_FILL)
        ]
        self._sequence += 1
        end = ownership.Change(self._sequence, reload=True, stored=b"", removed=b"")
        return [
            OwnershipCall("register", (msgspec.json.encode(self._info),)),
            *(OwnershipCall("fill", (part,)) for part in parts),
            OwnershipCall("complete", tuple(end.args())),
        ]

    def _closing_call(self) -> OwnershipCall | None:
        if self._has_lease:
            return OwnershipCall("release")
        if self._is_listed:
            return OwnershipCall("forget_name", (self._info.node.name,))
        if self._has_mark:
            return OwnershipCall("forget_mark")
        return None

    def _tell_marked(self, is_written: bool) -> None:
        on_done, self._on_marked = self._on_marked, None
        if on_done is not None:
            on_done(is_written)

    def _absorb(self) -> None:
        """Brings the owned set up to date, and notes what Redis lacks of that."""
        changes, self._pending = self._pending, []
        for change in changes:
            for page_hash in change.removed:
                self._owned.pop(page_hash, None)
            self._owned.update(dict.fromkeys(change.stored))
        if self._is_registered:
            # Without a record there is nothing to change: the next rewrite has the whole set.
            self._unwritten += joined_changes(changes)

    def _applied(self, call: OwnershipCall) -> None:
        if call.script == "register":
            self._has_lease = True
        elif call.script == "complete":
            self._is_registered = True
            num_pages = len(self._owned)
            log.info("registered in Redis as %s with %d owned pages", self._info.node, num_pages)
        elif call.script == "apply":
            self._unwritten.popleft()
        elif call.script == "release":
            self._has_lease = False

    def _refused(self, call: OwnershipCall, result: Any, now: float) -> None:
        self._forget_record()
        if call.script == "release":  # a newer incarnation has the lease, and the name
            self._is_listed = False
        elif result == ownership.FENCED:
            self.is_replaced = True
        else:
            log.warning("Redis lost the record of %s, writing it again", self._info.node)
            self.wake_at = now

    def _forget_record(self, keeps_lease: bool = False) -> None:
        """Forgets what Redis was told: it may differ from the owned set in any way."""
        self._is_registered = False
        self._has_lease = self._has_lease and keeps_lease
        self._unwritten.clear()
        self._round.clear()

    def _see_coordinators(self, addresses: Iterable[str], now: float) -> None:
        self._coordinators_seen.update(dict.fromkeys(addresses, now))
        self._coordinators_seen = {
            address: seen
            for address, seen in self._coordinators_seen.items()
            if now - seen < COORDINATOR_KEPT_S
        }
        self.coordinators = tuple(self._coordinators_seen)

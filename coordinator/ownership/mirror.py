"""`OwnershipMirror`: how the ownership record in Redis gets into the `PrefixIndex`. Pure.

It says which call to Redis comes next and takes what Redis answers; who carries the calls is the
`OwnershipFollower`. Redis may be gone: the index stays as it is, and routing goes on. A gap in a
node's sequence, a `reload` entry, a record that went back, or an unknown node make the node's whole
set be read.

The calls come in rounds: now and then a look for nodes (announce this coordinator, read what
drains, list the nodes); then a set that has to be loaded, in parts; else the changes of all nodes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from coordinator.ownership.index import PrefixIndex
from protocol.hashing import PageHash, split_hashes
from protocol.ids import Node
from protocol.redis import ownership
from protocol.redis.ownership import text_of

log = logging.getLogger(__name__)

READ_BLOCK_MS = 100
"""How long Redis waits for a change before it answers that there is none."""
ENTRIES_PER_READ = 200
HASHES_PER_SCAN = 4_000
BYTES_AT_ONCE = 64 * 1024
"""The most bytes of page hashes that are applied before the caller's other work has its turn."""
STREAM_S = 50e-6
"""A read of changes begins so long after the one before for each stream that is read: Redis and
client look at every stream in each read, however few of them have changed."""
MAX_READ_PAUSE_S = 0.1
"""It waits no longer, however many nodes there are: several reads come between two looks for nodes,
the second of which takes a stream for lost that is still where it was."""
LOOK_FOR_NODES_S = 0.5
RETRY_S = 0.5
ANNOUNCE_LEASE_S = 10.0

Entry = tuple[bytes, dict[bytes, bytes]]
"""Id and fields of an entry of a stream, as Redis gives it."""


@dataclass(frozen=True)
class MirrorCall:
    """One call to Redis, by its kind; the result is what the Redis client returns for it.

    | script          | args                                   | result                         |
    |-----------------|----------------------------------------|--------------------------------|
    | announce        | address, lease_ms                      | Redis's time in µs             |
    | read_draining   |                                        | the hash: name → its mark      |
    | write_draining  | {name: mark}                           | ignored                        |
    | list_leases     |                                        | of the script LIST_LEASES      |
    | last_change     | key of a stream                        | XREVRANGE … COUNT 1            |
    | scan_pages      | key of a set, cursor, count            | of the script SCAN             |
    | read_changes    | {key: id read last}, count, block ms   | XREAD; block None: no waiting  |
    """

    script: Literal[
        "announce",
        "read_draining",
        "write_draining",
        "list_leases",
        "last_change",
        "scan_pages",
        "read_changes",
    ]
    args: tuple[Any, ...] = ()


@dataclass
class _ReadPosition:
    """How far a node's stream of changes was read."""

    key: str
    """The key of the stream."""
    stream_id: bytes
    sequence: int
    seen_behind: bytes = b""
    """`stream_id` at the last look for nodes, if the record was ahead of it then."""

    def has_lost(self, recorded: int) -> bool:
        """Returns True if reading on cannot lead to the change number `recorded`: the numbers went
        back, or the entries have ids before ours (another Redis, with another clock) and were not
        delivered."""
        is_behind = recorded > self.sequence
        is_stuck = is_behind and self.seen_behind == self.stream_id
        self.seen_behind = self.stream_id if is_behind else b""
        return is_stuck or recorded < self.sequence


@dataclass
class _SetLoad:
    """A node's set that is being read in parts, while both it and its stream may change.

    Every change after the end of the stream at the beginning is replayed afterwards, in order, and
    replaying what the parts already show changes nothing. So a page that changed is what its last
    change says; one that did not was owned all the while and in some part, or never and in none.
    """

    node: Node
    was_known: bool
    """True if the index has pages of the node; those that no part of the set shows are removed at
    the end."""
    position: _ReadPosition | None = None
    """The end of the stream at the beginning; None until it is known."""
    cursor: bytes | int = 0
    found: set[PageHash] = field(default_factory=set)
    rest: Iterator[Sequence[PageHash]] | None = None
    """Parts of the pages that the index had, when all of the set is read."""


class OwnershipMirror:
    """Keeps a `PrefixIndex` equal to the record in Redis. It does no I/O: ask `next_call`, carry
    the call out, and tell the result with `replied` or `unreachable`."""

    def __init__(self, address: str, index: PrefixIndex) -> None:
        """`address` is where nodes send this coordinator's heartbeats."""
        self.wake_at = 0.0
        """When to ask for the next call, after `next_call` has said None."""
        self.is_connected = False
        self.lag_s = 0.0
        """Delay from the newest change's entry into Redis to the index."""
        self.num_reloads = 0
        """Sets of known nodes that were read again."""
        self.last_reloaded = ""
        """The name of the node whose set was read again last."""
        self.drain_marks: Mapping[str, str] = {}
        """The marks of nodes that get no new requests, by name, as Redis has them: an incarnation,
        or KEEPS_DRAINING."""
        self._address = address
        self._index = index
        self._positions: dict[Node, _ReadPosition] = {}
        self._to_load: dict[Node, None] = {}
        self._load: _SetLoad | None = None
        self._look: deque[MirrorCall] = deque()
        """Calls of the look for nodes that are still to be made."""
        self._next_look_at = 0.0
        self._next_read_at = 0.0
        self._retry_at = 0.0
        self._unapplied: deque[tuple[Node, Entry]] = deque()
        """Changes that were read and are not in the index yet."""
        self._asked_at = 0.0
        self._redis_ahead_s = 0.0
        """Clock of Redis minus the clock of `now`."""
        self._unreadable: set[str] = set()

    @property
    def knows_nodes(self) -> bool:
        """True if Redis has told of a node that has a lease."""
        return bool(self._positions or self._to_load)

    def next_call(self, now: float) -> MirrorCall | None:
        """Returns what to ask Redis next; None if there is nothing to ask before `wake_at`.

        It may also apply some of what was read before. Only one call is under way at a time.
        """
        self.wake_at = now
        if now < self._retry_at:
            self.wake_at = self._retry_at
            return None
        # Before anything else: what was read before a load begins must not be applied after it.
        if self._unapplied:
            self._apply_some(now)
            return None
        self._asked_at = now
        if self._look:
            return self._look[0]
        if self._load is None and now >= self._next_look_at:
            self._begin_look(now)
            return self._look[0]
        if self._load is None and self._to_load:
            node = next(iter(self._to_load))
            del self._to_load[node]
            self._load = _SetLoad(node, was_known=self._index.num_pages(node) > 0)
        if self._load is not None:
            return self._next_of_load(self._load)
        return self._read_changes(now)

    def replied(self, call: MirrorCall, result: Any, now: float) -> None:
        """Takes what Redis has answered to `call`."""
        if self._look:
            self._look.popleft()
        if call.script == "announce":
            # Redis has read its clock about half-way between question and answer.
            self._redis_ahead_s = result / 1e6 - (self._asked_at + now) / 2
        elif call.script == "read_draining":
            self._take_draining(result)
        elif call.script == "list_leases":
            self._take_nodes(self.parse_nodes(result))
        elif call.script in ("last_change", "scan_pages"):
            self._take_part_of_load(call, result)
        elif call.script == "read_changes":
            self._take_changes(result)

    def unreachable(self, now: float) -> None:
        """Handles the news that the call has failed. Everything is tried again a little later."""
        self.is_connected = False
        self._retry_at = now + RETRY_S
        self._next_look_at = now
        self._look.clear()
        for position in self._positions.values():
            position.seen_behind = b""  # nothing was read since
        load, self._load = self._load, None
        if load is not None and load.node in self._positions:
            self._to_load[load.node] = None
        elif load is not None:
            self._index.forget(load.node)  # nobody follows it yet, so nobody would forget it

    def ask_for_load(self, node: Node) -> bool:
        """Has the node's whole set read again, soon. Returns False if the node is not known."""
        if node not in self._positions:
            return False
        self._to_load[node] = None  # also while it is read: that may have begun too early
        return True

    def is_loading(self, node: Node) -> bool:
        """Returns True while the node's whole set is being read or still has to be."""
        return node in self._to_load or (self._load is not None and self._load.node == node)

    def set_drain_mark(self, name: str, mark: str) -> None:
        """Handles the news that this coordinator itself has changed the mark of a node in Redis."""
        self.drain_marks = _drains({**self.drain_marks, name: mark})

    def _begin_look(self, now: float) -> None:
        self._next_look_at = now + LOOK_FOR_NODES_S
        announce = MirrorCall("announce", (self._address, int(ANNOUNCE_LEASE_S * 1000)))
        self._look.extend((announce, MirrorCall("read_draining"), MirrorCall("list_leases")))

    def _take_draining(self, record: dict[bytes, bytes]) -> None:
        # What was taken back stays in the record as 0, so none at all means that Redis lost it:
        # then this coordinator, and every other one, writes what it knows.
        if record:
            self.drain_marks = _drains({text_of(k): text_of(v) for k, v in record.items()})
        elif self.drain_marks:
            self._look.appendleft(MirrorCall("write_draining", (dict(self.drain_marks),)))

    def _take_nodes(self, live: dict[Node, int | None]) -> None:
        """Takes which nodes are live. `live` has the number of each node's last change; None if its
        set is being rewritten."""
        gone = self._positions.keys() - live.keys()
        for node in gone:
            del self._positions[node]
            self._to_load.pop(node, None)
        self._index.forget(*gone)
        for node, sequence in live.items():
            if sequence is None:
                continue  # it writes its set now, and ends with a `reload` entry
            # A node is followed from its position on; without one, or after a gap, its whole set is
            # read.
            position = self._positions.get(node)
            if position is None or position.has_lost(sequence):
                self._to_load[node] = None
        for node in [node for node in self._to_load if node not in live]:
            del self._to_load[node]

    def parse_nodes(self, listed: Sequence[Any]) -> dict[Node, int | None]:
        """Returns the nodes that have a lease, each with the number of its last change, from the
        reply of LIST_LEASES."""
        found: dict[Node, int | None] = {}
        for name, lease, sequence in zip(*(listed[i::3] for i in range(3)), strict=True):
            if lease is None:
                continue
            try:
                said = {"name": name.decode(), "incarnation": int(lease)}
                node = msgspec.convert(said, Node)  # it checks both
                found[node] = None if sequence is None else int(sequence)
            except ValueError as error:
                self._tell_unreadable(text_of(name), error)
        return found

    def _forget_unreadable(self, node: Node, error: Exception) -> None:
        """Forgets what a node owns, whose record it cannot have written so itself. The next look
        for nodes begins anew with it."""
        self._tell_unreadable(node.name, error)
        self._index.forget(node)
        self._positions.pop(node, None)
        if self._load is not None and self._load.node == node:
            self._load = None

    def _tell_unreadable(self, name: str, error: Exception) -> None:
        """Says once of a node that its record makes no sense: another version, or somebody else,
        has written it."""
        if name not in self._unreadable:
            self._unreadable.add(name)
            log.error("the record of node %r in Redis is ignored: %s", name, error)

    def _take_part_of_load(self, call: MirrorCall, result: Any) -> None:
        assert self._load is not None
        try:
            if call.script == "last_change":
                self._take_last_change(result)
            else:
                self._take_pages(*result)
        except ValueError as error:
            self._forget_unreadable(self._load.node, error)

    def _next_of_load(self, load: _SetLoad) -> MirrorCall | None:
        keys = ownership.NodeKeys.of(load.node)
        if load.position is None:
            return MirrorCall("last_change", (keys.changes,))
        if load.rest is None:
            return MirrorCall("scan_pages", (keys.pages, load.cursor, HASHES_PER_SCAN))
        # All parts of the set are in the index now; what the index had before and no part has shown
        # is removed, a part of it at a time.
        part = next(load.rest, None)
        if part is not None:
            self._index.removed(load.node, [page for page in part if page not in load.found])
            return None
        if load.node in self._positions:
            self.num_reloads += 1
            self.last_reloaded = load.node.name
        self._positions[load.node] = load.position
        self._load = None
        return None

    def _take_last_change(self, last: Sequence[Entry]) -> None:
        assert self._load is not None
        if not last:
            self._load = None  # it went meanwhile: the next look tells
            return
        stream_id, fields = last[0]
        sequence = ownership.Change.from_entry(fields).sequence
        key = ownership.NodeKeys.of(self._load.node).changes
        self._load.position = _ReadPosition(key, stream_id, sequence)

    def _take_pages(self, cursor: bytes | int, blob: bytes) -> None:
        # The parts come in no order: until the load has ended, the depth of this node, and of no
        # other, may be wrong.
        load = self._load
        assert load is not None
        hashes = split_hashes(blob)
        self._index.stored(load.node, hashes)
        if load.was_known:
            load.found.update(hashes)
        load.cursor = cursor
        if int(cursor) == 0:
            owned = self._index.pages(load.node) if load.was_known else []
            starts = range(0, len(owned), HASHES_PER_SCAN)
            load.rest = iter([owned[start : start + HASHES_PER_SCAN] for start in starts])

    def _read_changes(self, now: float) -> MirrorCall | None:
        if not self._positions:
            self.is_connected = True  # it was looked for nodes, and there are none
            self.wake_at = now + READ_BLOCK_MS / 1000
            return None
        if now < self._next_read_at:
            self.wake_at = self._next_read_at
            return None
        self._next_read_at = now + min(MAX_READ_PAUSE_S, STREAM_S * len(self._positions))
        positions = {position.key: position.stream_id for position in self._positions.values()}
        return MirrorCall("read_changes", (positions, ENTRIES_PER_READ, READ_BLOCK_MS))

    def _take_changes(self, reply: Sequence[tuple[bytes, Sequence[Entry]]]) -> None:
        self.is_connected = True
        if not reply:
            return
        nodes = {position.key: node for node, position in self._positions.items()}
        for key, entries in reply:
            node = nodes[key.decode()]
            self._unapplied.extend((node, entry) for entry in entries)

    def _apply_some(self, now: float) -> None:
        """Applies what was read, but no more than BYTES_AT_ONCE."""
        num_bytes = 0
        while self._unapplied and num_bytes <= BYTES_AT_ONCE:
            node, (stream_id, fields) = self._unapplied.popleft()
            if node in self._to_load or node not in self._positions:
                continue  # the load reads what this entry tells
            try:
                change = ownership.Change.from_entry(fields)
                num_bytes += len(change.stored) + len(change.removed)
                if not self._apply(node, stream_id, change):
                    self._to_load[node] = None
            except ValueError as error:
                self._forget_unreadable(node, error)
                continue
            # The id of an entry begins with the time at which Redis took it, in milliseconds.
            entered_s = int(stream_id.partition(b"-")[0]) / 1000
            self.lag_s = max(0.0, now + self._redis_ahead_s - entered_s)

    def _apply(self, node: Node, stream_id: bytes, change: ownership.Change) -> bool:
        """Applies one entry of a node's stream. Returns False if the node's whole set must be read
        instead."""
        position = self._positions[node]
        if change.reload or change.sequence != position.sequence + 1:
            return False
        self._index.removed(node, split_hashes(change.removed))
        self._index.stored(node, split_hashes(change.stored))
        position.stream_id, position.sequence = stream_id, change.sequence
        return True


def _drains(marks: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the marks of those that drain."""
    return {name: mark for name, mark in marks.items() if mark != ownership.DOES_NOT_DRAIN}

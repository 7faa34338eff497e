"""`RedisModel`: what the cluster uses of Redis, with what its scripts mean, on a virtual clock.

`protocol.redis.ownership` has the scripts; the contract tests hold them against a real server. Both
halves of the cluster see the model through the calls of `OwnershipWriter` and `OwnershipMirror`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from coordinator.ownership.mirror import Entry, MirrorCall
from node.ownership.ownership_writer import OwnershipCall
from protocol.hashing import PageHash, join_hashes, split_hashes
from protocol.ids import Node
from protocol.redis.ownership import APPLIED, FENCED, KEEPS_DRAINING, LOST, NodeKeys
from tests.sim.world.clock import VirtualClock

STREAM_MAX_LENGTH = 5
"""Short, so that a coordinator that lags finds a gap."""
MIDDLE = b"\x80"
"""A set is scanned in two parts: hashes below and from here on."""


class RedisDown(Exception):
    """Redis does not answer."""


@dataclass
class _Record:
    """The keys of one name; sets and streams of its incarnations lie under their own keys."""

    incarnation: int | None = None
    lease_ends: float = 0.0
    sequence: int | None = None
    info: bytes = b""


@dataclass
class RedisModel:
    """One server. Every call raises RedisDown while it is down."""

    clock: VirtualClock
    down_until: float = 0.0
    slow_until: float = 0.0
    slow_s: float = 0.0
    _records: dict[str, _Record] = field(default_factory=dict)
    _pages: dict[str, set[PageHash]] = field(default_factory=dict)
    _streams: dict[str, list[Entry]] = field(default_factory=dict)
    _coordinators: dict[str, float] = field(default_factory=dict)
    _draining: dict[bytes, bytes] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _next_id: int = 1
    _readers: list[Callable[[], None]] = field(default_factory=list)
    """Who waits for the next entry of any stream."""

    @property
    def delay_s(self) -> float:
        """Returns how long a call takes now."""
        return self.slow_s if self.clock.now < self.slow_until else 0.0005

    def empty(self) -> None:
        """Drops all data, as a restart without persistence does."""
        for data in (self._records, self._pages, self._streams, self._coordinators):
            data.clear()
        self._draining.clear()
        self._names.clear()

    def when_changed(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once, at the next entry of any stream."""
        self._readers.append(tell)

    def write(self, node: Node, lease_s: float, call: OwnershipCall) -> Any:
        """Carries out a call of a node's writer."""
        self._require_up()
        script, args = call.script, call.args
        if script == "announce_name":
            return self._names.add(str(args[0]))
        if script == "forget_name":
            return self._names.discard(str(args[0]))
        if script == "mark_draining":
            return self._mark_draining(node)
        if script == "forget_mark":
            return self._forget_mark(node)
        if script == "list_coordinators":
            now = self.clock.now
            return [address for address, ends in self._coordinators.items() if ends > now]
        record = self._records.setdefault(node.name, _Record())
        current = record.incarnation if record.lease_ends > self.clock.now else None
        if script == "register":
            return self._register(record, current, node, lease_s, call)
        if script == "release":
            return self._release(record, current, node)
        if current is None:
            return LOST
        if current != node.incarnation:
            return FENCED if current > node.incarnation else LOST
        return self._guarded(record, node, lease_s, call)

    def read(self, call: MirrorCall) -> Any:
        """Carries out a call of a coordinator's mirror."""
        self._require_up()
        script, args = call.script, call.args
        if script == "announce":
            self._coordinators[args[0]] = self.clock.now + args[1] / 1000
            return int(self.clock.now * 1e6)
        if script == "read_draining":
            return dict(self._draining)
        if script == "write_draining":
            return self._draining.update((k.encode(), v.encode()) for k, v in args[0].items())
        if script == "list_leases":
            return self._list_leases()
        if script == "last_change":
            return self._streams.get(args[0], [])[-1:]
        if script == "scan_pages":
            pages, is_first = self._pages.get(args[0], set()), args[1] == 0
            part = sorted(page for page in pages if (page < MIDDLE) == is_first)
            return (b"1" if is_first else b"0"), join_hashes(part)
        return self._entries_after(args[0])

    def _register(
        self,
        record: _Record,
        current: int | None,
        node: Node,
        lease_s: float,
        call: OwnershipCall,
    ) -> int:
        if current is not None and current > node.incarnation:
            return FENCED
        record.incarnation, record.lease_ends = node.incarnation, self.clock.now + lease_s
        record.sequence, record.info = None, bytes(call.args[0])  # type: ignore[arg-type]
        self._pages[NodeKeys.of(node).pages] = set()
        return APPLIED

    def _mark_draining(self, node: Node) -> int:
        mark = self._draining.get(node.name.encode(), b"0")
        if mark != KEEPS_DRAINING.encode() and int(mark) < node.incarnation:
            self._draining[node.name.encode()] = b"%d" % node.incarnation
        return APPLIED

    def _forget_mark(self, node: Node) -> int:
        if self._draining.get(node.name.encode()) == b"%d" % node.incarnation:
            del self._draining[node.name.encode()]
            self._draining[b""] = b"0"
        return APPLIED

    def _release(self, record: _Record, current: int | None, node: Node) -> int:
        keys = NodeKeys.of(node)
        self._pages.pop(keys.pages, None)
        self._streams.pop(keys.changes, None)
        if current != node.incarnation:
            return FENCED
        record.incarnation = record.sequence = None
        return APPLIED

    def _guarded(self, record: _Record, node: Node, lease_s: float, call: OwnershipCall) -> int:
        keys, args = NodeKeys.of(node), call.args
        pages = self._pages.setdefault(keys.pages, set())
        if call.script == "fill":
            pages.update(split_hashes(args[0]))  # type: ignore[arg-type]
        elif call.script == "renew":
            if record.sequence != args[0]:
                return LOST
        else:
            _, sequence, kind, stored, removed = args
            if call.script == "apply":
                if record.sequence != int(sequence) - 1:
                    return LOST
                pages.difference_update(split_hashes(removed))  # type: ignore[arg-type]
                pages.update(split_hashes(stored))  # type: ignore[arg-type]
            record.sequence = int(sequence)
            fields: dict[bytes, bytes] = {
                b"n": str(sequence).encode(),
                b"k": str(kind).encode(),
                b"s": stored,  # type: ignore[dict-item]
                b"r": removed,  # type: ignore[dict-item]
            }
            stream_id = f"{int(self.clock.now * 1000)}-{self._next_id}".encode()
            self._next_id += 1
            stream = self._streams.setdefault(keys.changes, [])
            stream.append((stream_id, fields))
            del stream[:-STREAM_MAX_LENGTH]
            readers, self._readers = self._readers, []
            for tell in readers:
                tell()
        record.lease_ends = self.clock.now + lease_s
        return APPLIED

    def _list_leases(self) -> list[bytes | None]:
        listed: list[bytes | None] = []
        for name in sorted(self._names):
            record = self._records.get(name, _Record())
            has_lease = record.incarnation is not None and record.lease_ends > self.clock.now
            lease = str(record.incarnation).encode() if has_lease else None
            sequence = None if record.sequence is None else str(record.sequence).encode()
            listed += [name.encode(), lease, sequence]
        return listed

    def _entries_after(self, positions: dict[str, bytes]) -> list[tuple[bytes, list[Entry]]]:
        found = []
        for key, last in positions.items():
            stream = self._streams.get(key)
            if not stream or stream[-1][0] == last:
                continue
            first = len(stream)
            while first and _number(stream[first - 1][0]) > _number(last):
                first -= 1
            if first < len(stream):
                found.append((key.encode(), stream[first:]))
        return found

    def _require_up(self) -> None:
        if self.clock.now < self.down_until:
            raise RedisDown


def _number(stream_id: bytes) -> int:
    return int(stream_id.partition(b"-")[2])

"""`CountedRedis`: the ownership record in memory, with what each call would cost a real Redis.

It answers the calls of `OwnershipWriter` and `OwnershipMirror` as the scripts of
`protocol.redis.ownership` do, as long as no node and no coordinator dies: that is all that this
benchmark lets them do. Counted are, by kind of call, the calls, the operations within Redis (each
command of a script, each stream of an XREAD) and the bytes of RESP in both directions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from coordinator.ownership.mirror import Entry, MirrorCall
from node.ownership.ownership_writer import OwnershipCall
from protocol.hashing import PageHash, join_hashes, split_hashes
from protocol.ids import Node
from protocol.redis import ownership
from protocol.redis.ownership import APPLIED, STREAM_MAX_LENGTH, NodeKeys

SCRIPT_BYTES = 40 + 7 + 9 + 4
"""The hash of a script, EVALSHA, and the number of keys."""


@dataclass
class Count:
    """What all calls of one kind have cost so far."""

    calls: int = 0
    operations: int = 0
    num_bytes: int = 0


@dataclass
class _Record:
    keys: NodeKeys
    info: bytes = b""
    sequence: int | None = None
    pages: set[PageHash] = field(default_factory=set)
    changes: deque[Entry] = field(default_factory=lambda: deque(maxlen=STREAM_MAX_LENGTH))
    key_bytes: int = 0


class CountedRedis:
    """One server. `now` is the time that it gives its entries."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.counts: dict[str, Count] = {}
        """By the kind of call."""
        self._now = now
        self._records: dict[Node, _Record] = {}
        self._by_changes_key: dict[str, _Record] = {}
        self._by_pages_key: dict[str, _Record] = {}
        self._coordinators: dict[str, None] = {}
        self._num_entries = 0
        self._readers: list[Callable[[], None]] = []

    def when_changed(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once, at the next entry of any stream."""
        self._readers.append(tell)

    def write(self, node: Node, call: OwnershipCall) -> Any:
        """Carries out a call of a node's writer."""
        if call.script == "list_coordinators":
            addresses = list(self._coordinators)
            self._count("list_coordinators", 2, SCRIPT_BYTES + _resp(addresses))
            return addresses
        if call.script == "announce_name":
            self._count("announce_name", 1, _resp([ownership.NODES_KEY, *call.args]))
            return 1
        record = self._records.get(node) or self._add(node)
        operations, script = 0, call.script
        if script == "register":
            record.info, record.sequence = bytes(call.args[0]), None  # type: ignore[arg-type]
            record.pages.clear()
            operations = 4
        elif script == "fill":
            record.pages.update(split_hashes(call.args[0]))  # type: ignore[arg-type]
            operations = 7
        elif script == "renew":
            operations = 7
        elif script in ("apply", "complete"):
            operations = self._enter(record, call)
        num_bytes = SCRIPT_BYTES + record.key_bytes + _resp([node.incarnation, 3000, *call.args])
        self._count(script, operations, num_bytes)
        return APPLIED

    def read(self, call: MirrorCall) -> Any:
        """Carries out a call of a coordinator's mirror."""
        script, args = call.script, call.args
        operations = 1
        reply: Any = None
        if script == "announce":
            self._coordinators[args[0]] = None
            operations, reply = 3, int(self._now() * 1e6)
        elif script == "read_draining":
            reply = {}
        elif script == "list_leases":
            reply = self._list_leases()
            operations = 1 + 2 * len(self._records)
        elif script == "last_change":
            reply = list(self._by_changes_key[args[0]].changes)[-1:]
        elif script == "scan_pages":
            reply = b"0", join_hashes(list(self._by_pages_key[args[0]].pages))
        else:
            positions = args[0]
            reply = [
                (key.encode(), entries)
                for key, last in positions.items()
                if (entries := self._entries_after(key, last))
            ]
            operations = len(positions)
            # The keys and ids of the question, each with its length before it.
            asked = sum(map(len, positions)) + sum(map(len, positions.values()))
            self._count(script, operations, asked + 12 * len(positions) + _resp(reply))
            return reply
        self._count(script, operations, SCRIPT_BYTES + _resp([list(args), reply]))
        return reply

    def meet(self) -> int:
        """Carries out the look of a node for others, and returns how many it finds."""
        num_nodes = len(self._records)
        info_bytes = sum(60 + len(record.info) for record in self._records.values())
        self._count("meet", 1 + 3 * num_nodes, SCRIPT_BYTES + info_bytes)
        return num_nodes

    def has_news(self, call: MirrorCall) -> bool:
        """Returns True if XREAD would answer at once."""
        return any(self._entries_after(key, last) for key, last in call.args[0].items())

    def _add(self, node: Node) -> _Record:
        keys = NodeKeys.of(node)
        record = self._records[node] = _Record(keys, key_bytes=_resp(keys.all()))
        self._by_changes_key[keys.changes] = self._by_pages_key[keys.pages] = record
        return record

    def _enter(self, record: _Record, call: OwnershipCall) -> int:
        """Adds an entry to the stream of a node. Returns how many commands the script runs."""
        _, sequence, kind, stored, removed = call.args
        assert isinstance(stored, bytes) and isinstance(removed, bytes)
        operations = 8
        if call.script == "apply":
            record.pages.difference_update(split_hashes(removed))
            record.pages.update(split_hashes(stored))
            operations += 1 + bool(removed) + bool(stored)
        record.sequence = int(sequence)
        self._num_entries += 1
        stream_id = f"{int(self._now() * 1000)}-{self._num_entries}".encode()
        number = str(sequence).encode()
        fields = {b"n": number, b"k": str(kind).encode(), b"s": stored, b"r": removed}
        record.changes.append((stream_id, fields))
        readers, self._readers = self._readers, []
        for tell in readers:
            tell()
        return operations

    def _entries_after(self, key: str, last: bytes) -> Sequence[Entry]:
        changes = self._by_changes_key[key].changes
        if not changes or changes[-1][0] == last:
            return ()
        newer = []
        for entry in reversed(changes):
            if _number(entry[0]) <= _number(last):
                break
            newer.append(entry)
        return newer[::-1]

    def _list_leases(self) -> list[bytes | None]:
        listed: list[bytes | None] = []
        for node, record in self._records.items():
            sequence = None if record.sequence is None else str(record.sequence).encode()
            listed += [node.name.encode(), str(node.incarnation).encode(), sequence]
        return listed

    def _count(self, kind: str, operations: int, num_bytes: int) -> None:
        count = self.counts.get(kind)
        if count is None:
            count = self.counts[kind] = Count()
        count.calls += 1
        count.operations += operations
        count.num_bytes += num_bytes


def _resp(value: Any) -> int:
    """Returns the bytes of a value in RESP: a string has its length before it and two line ends."""
    if value is None:
        return 5
    if isinstance(value, bytes | str):
        return len(value) + 5 + len(str(len(value)))
    if isinstance(value, dict):
        return 4 + sum(_resp(key) + _resp(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return 4 + sum(map(_resp, value))
    return 3 + len(str(value))


def _number(stream_id: bytes) -> int:
    return int(stream_id.partition(b"-")[2])

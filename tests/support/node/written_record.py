"""A writer of ownership and the record in Redis that it keeps, played call by call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.cache.prefix_cache import CacheChange
from node.ownership.ownership_writer import (
    OwnershipCall,
    OwnershipWriter,
)
from protocol.hashing import PageHash, split_hashes
from protocol.ids import Node
from protocol.messages import NodeInfo
from protocol.redis.ownership import APPLIED, FENCED, HASHES_PER_CHANGE, LOST
from tests.support.coordinator.nodes import info_of

NODE = Node("p0", 5)
LEASE_S = 3.0


def page(number: int) -> PageHash:
    return number.to_bytes(16, "big")


def pages(*numbers: int) -> list[PageHash]:
    return [page(number) for number in numbers]


def parent(page_hash: PageHash) -> PageHash | None:
    """Chains of ten: page 23 is below page 22, page 20 below none."""
    number = int.from_bytes(page_hash, "big")
    return page(number - 1) if number % 10 else None


@dataclass
class PlayedRedis:
    """What the scripts do to the record of one node, and what a reader sees after each call."""

    incarnation: int = 0
    """0: nobody has the lease."""
    info: NodeInfo | None = None
    sequence: int | None = None
    owned: set[PageHash] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    is_marked: bool = False
    """The node is marked as draining."""
    coordinators: list[str] = field(default_factory=list)
    calls: list[OwnershipCall] = field(default_factory=list)

    def carry_out(self, call: OwnershipCall) -> Any:
        self.calls.append(call)
        if call.script == "announce_name":
            return self.names.update(map(str, call.args))
        if call.script == "forget_name":
            return self.names.difference_update(map(str, call.args))
        if call.script in ("mark_draining", "forget_mark"):
            self.is_marked = call.script == "mark_draining"
            return APPLIED
        if call.script == "list_coordinators":
            return list(self.coordinators)
        result = self._script(call.script, call.args)
        assert all(parent(h) is None or parent(h) in self.owned for h in self.owned), call
        return result

    def _script(self, script: str, args: tuple[Any, ...]) -> int:
        if script == "register":
            if self.incarnation > NODE.incarnation:
                return FENCED
            self.incarnation, self.sequence, self.owned = NODE.incarnation, None, set()
            self.info = msgspec.json.decode(args[0], type=NodeInfo)
            return APPLIED
        if self.incarnation == 0 and script != "release":
            return LOST
        if self.incarnation != NODE.incarnation:
            return FENCED
        if script == "fill":
            self.owned |= set(split_hashes(args[0]))
        elif script == "release":
            self.incarnation = 0
        elif script == "renew":
            return APPLIED if self.sequence == args[0] else LOST
        else:
            _, sequence, kind, stored, removed = args
            if script == "apply" and self.sequence != sequence - 1:
                return LOST
            assert kind == ("change" if script == "apply" else "reload")
            assert len(stored) + len(removed) <= 16 * HASHES_PER_CHANGE
            self.owned -= set(split_hashes(removed))
            self.owned |= set(split_hashes(stored))
            self.sequence = sequence
        return APPLIED


class Writing:
    """A writer and its Redis, call by call."""

    def __init__(self) -> None:
        self.writer = OwnershipWriter(info_of(NODE), LEASE_S)
        self.redis = PlayedRedis()
        self.now = 0.0

    def one(self) -> bool:
        """Carries one call; False: there is none."""
        call = self.writer.next_call(self.now)
        if call is None:
            return False
        self.writer.replied(call, self.redis.carry_out(call), self.now)
        return True

    def all(self) -> list[str]:
        """Carries all calls that are due; returns their scripts."""
        self.redis.calls.clear()
        while self.one():
            assert len(self.redis.calls) < 10_000, "it never rests"
        return [call.script for call in self.redis.calls]

    def fail(self) -> bool:
        assert self.writer.next_call(self.now) is not None
        return self.writer.unreachable(self.now)

    def stored(self, *numbers: int) -> None:
        self.writer.publish([CacheChange([], pages(*numbers))])

    def removed(self, *numbers: int) -> None:
        self.writer.publish([CacheChange(pages(*numbers), [])])

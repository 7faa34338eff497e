"""What a node writes about its pages, against a Redis that is played: it is lost, fenced, gone, and
the set in it is prefix-closed at every moment."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.prefix_cache import CacheChange
from node.ownership.ownership_writer import (
    COORDINATOR_KEPT_S,
    HASHES_PER_FILL,
    RETRY_S,
    OwnershipCall,
    OwnershipWriter,
)
from protocol.hashing import PageHash, split_hashes
from protocol.ids import Node
from protocol.messages import NodeInfo
from protocol.redis.ownership import APPLIED, FENCED, HASHES_PER_CHANGE, LOST
from tests.support.nodes import info_of

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
    coordinators: list[str] = field(default_factory=list)
    calls: list[OwnershipCall] = field(default_factory=list)

    def carry_out(self, call: OwnershipCall) -> Any:
        self.calls.append(call)
        if call.script == "announce_name":
            return self.names.update(map(str, call.args))
        if call.script == "forget_name":
            return self.names.difference_update(map(str, call.args))
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


REGISTERED = ["register", "complete", "announce_name", "list_coordinators"]
RENEWED = ["renew", "announce_name", "list_coordinators"]


def test_a_node_registers_writes_changes_and_renews_its_lease() -> None:
    writing = Writing()
    assert writing.all() == REGISTERED
    assert writing.redis.info == info_of(NODE) and writing.redis.names == {"p0"}
    assert writing.writer.next_call(0.5) is None
    writing.stored(0, 1)
    writing.removed(1)
    writing.stored(10)
    assert writing.all() == ["apply"], "changes that wait are joined"
    assert writing.redis.owned == set(pages(0, 10))
    assert writing.writer.wake_at == LEASE_S / 3
    writing.now = writing.writer.wake_at
    assert writing.all() == RENEWED


def test_what_is_known_before_the_first_call_is_written_with_the_registration() -> None:
    writing = Writing()
    writing.stored(0, 1, 2)
    assert writing.all() == ["register", "fill", *REGISTERED[1:]]
    assert writing.redis.owned == set(pages(0, 1, 2))


@pytest.mark.parametrize("noticed_by", ["apply", "renew"])
@pytest.mark.parametrize("what", ["lease", "changes"])
def test_a_lost_record_is_written_again(what: str, noticed_by: str) -> None:
    """The lease ended or Redis came back empty; or it lost the last changes in a failover."""
    writing = Writing()
    writing.stored(0, 1)
    writing.all()
    if what == "lease":
        writing.redis.incarnation, writing.redis.owned = 0, set()
    else:
        assert writing.redis.sequence is not None
        writing.redis.sequence -= 1
    if noticed_by == "apply":
        writing.stored(2)
    else:
        writing.now = writing.writer.wake_at
    assert writing.all() == [noticed_by, "register", "fill", *REGISTERED[1:]]
    assert writing.redis.owned == set(writing.writer.owned)
    assert writing.redis.incarnation == NODE.incarnation


@pytest.mark.parametrize("noticed_by", ["register", "apply", "renew"])
def test_a_life_that_was_replaced_writes_no_more(noticed_by: str) -> None:
    writing = Writing()
    if noticed_by != "register":
        writing.all()
    writing.redis.incarnation = NODE.incarnation + 1
    writing.stored(0)
    if noticed_by == "renew":
        writing.now = writing.writer.wake_at
    assert writing.all() == [noticed_by]
    assert writing.writer.is_replaced and writing.writer.is_over
    writing.stored(1)
    writing.writer.close()
    writing.now += 100
    assert writing.all() == []


def test_an_unreachable_redis_is_left_alone_and_written_anew() -> None:
    writing = Writing()
    writing.stored(0)
    writing.all()
    writing.stored(1)
    writing.now = 0.5
    assert writing.fail() is True, "it is news"
    writing.stored(10)
    assert writing.writer.next_call(0.6) is None
    assert writing.writer.wake_at == 0.5 + RETRY_S
    writing.now = writing.writer.wake_at
    assert writing.fail() is False, "it is none any more"
    writing.now += RETRY_S
    writing.removed(10)
    assert writing.all() == ["register", "fill", *REGISTERED[1:]]
    assert writing.redis.owned == set(pages(0, 1))


def test_a_call_that_was_carried_out_unheard_harms_nobody() -> None:
    """Redis applied the change, and its reply was lost."""
    writing = Writing()
    writing.all()
    writing.stored(0)
    call = writing.writer.next_call(0.0)
    assert call is not None and writing.redis.carry_out(call) == APPLIED
    writing.writer.unreachable(0.0)
    applied = writing.redis.sequence
    writing.now = RETRY_S
    writing.all()
    assert writing.redis.owned == set(pages(0))
    assert applied is not None and writing.redis.sequence is not None
    assert writing.redis.sequence > applied, "its followers see a new number"


def test_a_wish_to_republish_waits_for_the_calls_under_way() -> None:
    writing = Writing()
    writing.stored(0, 1)
    writing.one()  # registered; the rest of the rewrite is to come
    writing.stored(2)
    writing.writer.republish()
    writing.redis.calls.clear()
    scripts = writing.all()
    first = ["fill", "complete", "announce_name", "list_coordinators"]
    assert scripts == [*first, "register", *first]
    assert writing.redis.owned == set(pages(0, 1, 2))
    writing.redis.owned.discard(page(2))
    writing.writer.republish()
    assert writing.all() == ["register", *first]
    assert writing.redis.owned == set(pages(0, 1, 2))


def test_changes_that_come_during_a_rewrite_follow_it() -> None:
    writing = Writing()
    writing.stored(0, 1)
    writing.one()
    writing.removed(1)
    writing.stored(20)
    assert writing.all() == ["fill", *REGISTERED[1:], "apply"]
    assert writing.redis.owned == set(pages(0, 20))


def test_a_rewrite_goes_in_parts_and_keeps_parents_before_children() -> None:
    """Also when a parent was removed and stored again."""
    writing = Writing()
    numbers = range(0, 10 * (HASHES_PER_FILL // 10 + 7))
    writing.stored(*numbers)
    writing.removed(3, 2, 1)
    writing.stored(1, 2)
    writing.removed(*range(9, 3, -1))
    assert writing.all() == ["register", "fill", "fill", *REGISTERED[1:]]
    assert writing.redis.owned == set(pages(*numbers)) - set(pages(*range(3, 10)))
    assert writing.writer.owned[-2:] == pages(1, 2)


def test_a_long_change_is_written_in_pieces() -> None:
    writing = Writing()
    writing.all()
    numbers = list(range(10 * (HASHES_PER_CHANGE // 4)))
    writing.stored(*numbers)
    assert writing.all() == ["apply"] * 3
    assert len(writing.redis.owned) == len(numbers)
    writing.removed(*reversed(numbers))
    assert writing.all() == ["apply"] * 3
    assert writing.redis.owned == set()


def test_a_node_that_closes_gives_its_lease_back_and_forgets_its_name() -> None:
    writing = Writing()
    writing.stored(0)
    writing.all()
    writing.stored(1)
    writing.writer.close()
    assert writing.all() == ["release", "forget_name"]
    assert writing.writer.is_over
    assert writing.redis.incarnation == 0 and not writing.redis.names


def test_a_node_that_closes_during_a_rewrite_gives_back_what_it_took() -> None:
    writing = Writing()
    writing.one()
    writing.writer.close()
    assert writing.all() == ["release"], "its name was not written yet"
    assert writing.writer.is_over


def test_a_node_that_closes_leaves_the_lease_of_a_newer_life() -> None:
    writing = Writing()
    writing.all()
    writing.redis.incarnation = NODE.incarnation + 1
    writing.writer.close()
    assert writing.all() == ["release"]
    assert writing.redis.incarnation == NODE.incarnation + 1
    assert writing.redis.names == {"p0"}, "the newer life has the name now"


def test_a_node_that_closes_without_redis_does_not_wait_for_it() -> None:
    writing = Writing()
    writing.all()
    writing.writer.close()
    writing.fail()
    assert writing.writer.is_over and writing.all() == []
    unheard = Writing()
    unheard.writer.close()
    assert unheard.writer.is_over and unheard.all() == []


def test_a_coordinator_that_is_not_announced_any_more_is_kept_for_a_while() -> None:
    writing = Writing()
    writing.redis.coordinators = ["c0", "c1"]
    writing.all()
    writing.redis.coordinators = ["c1"]
    writing.now = COORDINATOR_KEPT_S - 1
    writing.all()
    assert writing.writer.coordinators == ("c0", "c1")
    writing.now = COORDINATOR_KEPT_S + 1
    writing.all()
    assert writing.writer.coordinators == ("c1",)


@given(st.integers(0, 1 << 30))
def test_whatever_happens_the_set_is_prefix_closed_and_in_the_end_the_same(seed: int) -> None:
    """`PlayedRedis` checks after every script that no page is without its parent."""
    rng, writing = random.Random(seed), Writing()
    depth = dict.fromkeys(range(4), 0)
    """Leading pages of four chains of ten that the node owns."""
    for _ in range(rng.randrange(60)):
        match rng.randrange(9):
            case 0 | 1 | 2:
                chain = rng.randrange(4)
                new = rng.randint(0, 10)
                old, depth[chain] = depth[chain], new
                if new > old:
                    writing.stored(*range(10 * chain + old, 10 * chain + new))
                elif new < old:
                    writing.removed(*range(10 * chain + old - 1, 10 * chain + new - 1, -1))
            case 3 | 4:
                writing.one()
            case 5:
                writing.writer.republish()
            case 6:
                if writing.writer.next_call(writing.now) is not None:
                    writing.writer.unreachable(writing.now)
            case 7:
                writing.redis.incarnation, writing.redis.owned = 0, set()
            case 8:
                writing.now += rng.random()
    for _ in range(2):  # a lost record may be noticed with the next renewal only
        writing.now = max(writing.now, writing.writer.wake_at)
        writing.all()
    expected = {page(10 * chain + i) for chain in depth for i in range(depth[chain])}
    assert set(writing.writer.owned) == writing.redis.owned == expected

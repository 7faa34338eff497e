"""What a node writes about its pages, against a Redis that is played: it is lost, fenced, gone, and
the set in it is prefix-closed at every moment."""

from __future__ import annotations

import pytest

from node.ownership.ownership_writer import (
    COORDINATOR_KEPT_S,
    HASHES_PER_FILL,
    RETRY_S,
)
from protocol.redis.ownership import APPLIED, HASHES_PER_CHANGE
from tests.support.coordinator.nodes import info_of
from tests.support.node.written_record import LEASE_S, NODE, Writing, page, pages

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


def test_a_node_is_marked_at_once_and_the_mark_goes_with_it() -> None:
    writing, told = Writing(), list[bool]()
    writing.all()
    writing.stored(0)
    writing.writer.mark_draining(told.append)
    assert writing.all() == ["mark_draining", "apply"]
    assert writing.redis.is_marked and told == [True]
    writing.writer.close()
    assert writing.all() == ["release", "forget_name", "forget_mark"]
    assert writing.writer.is_over and not writing.redis.is_marked and told == [True]


@pytest.mark.parametrize("is_known", [False, True])
def test_a_mark_that_redis_does_not_take_is_told_at_once_and_not_tried_again(
    is_known: bool,
) -> None:
    writing, told = Writing(), list[bool]()
    writing.all()
    if is_known:  # it may wait for RETRY_S
        writing.now = writing.writer.wake_at
        writing.fail()
    writing.writer.mark_draining(told.append)
    writing.fail()
    assert told == [False]
    writing.now += RETRY_S
    assert "mark_draining" not in writing.all()


def test_a_mark_outlives_an_absence_of_redis_and_nobody_waits_for_its_removal() -> None:
    writing = Writing()
    writing.all()
    writing.writer.mark_draining(lambda _: None)
    writing.all()
    writing.now = writing.writer.wake_at
    writing.fail()
    writing.writer.close()
    assert not writing.writer.is_over and writing.writer.next_call(writing.now) is not None
    writing.fail()
    assert writing.writer.is_over and writing.writer.next_call(writing.now) is None

"""What a node's core decides besides what is computed: transfers, operators, coordinators."""

from __future__ import annotations

import pytest

from engine.batches.sequence import Sampled
from engine.cache.prefix_cache import PrefixCache
from node.core.coordinator_leases import CoordinatorLeases
from node.core.core import NodeCore
from node.core.expected_transfers import ExpectedTransfers, without_outdated
from node.core.instructions import (
    AbortTransfer,
    Event,
    ExpectPages,
    Instruction,
    PagesArrived,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    RewriteRecord,
    SendMessage,
)
from protocol.hashing import PageHasher, split_hashes
from protocol.ids import Attempt
from protocol.messages import (
    COORDINATOR_LEASE_S,
    AuditPages,
    AuditReply,
    CacheFlushed,
    Cancel,
    CoordinatorAlive,
    FlushCache,
    Message,
    Republish,
    TokensOut,
)
from protocol.namespace import Namespace
from tests.support.coordinator.nodes import LAYOUT
from tests.support.node.schedulers import COORDINATOR, D0, PREFILL, decode_scheduler, generate

A, B = Attempt("a", 1), Attempt("b", 1)


def core_of(cache: PrefixCache | None = None) -> NodeCore:
    cache = cache or PrefixCache(64, LAYOUT.page_size)
    return NodeCore(D0, cache, decode_scheduler(cache=cache))


# Transfers


def test_of_pages_that_arrive_only_the_newest_number_is_told() -> None:
    events: list[Event] = [
        PagesArrived(A, 1),
        PagesArrived(A, 2),
        PagesArrived(B, 1),
        PagesArrived(A, 3),
        PagesReceived(A),
        PagesSent(B),
    ]
    assert without_outdated(events) == [
        PagesArrived(B, 1),
        PagesArrived(A, 3),
        PagesReceived(A),
        PagesSent(B),
    ]


def test_news_of_one_life_of_a_transfer_are_not_taken_for_those_of_the_next() -> None:
    expected = ExpectedTransfers()
    (first,) = expected.noted([ExpectPages(A, [1, 2])])
    assert isinstance(first, ExpectPages)
    assert expected.is_current(PagesArrived(A, 1, first.serial))
    _, second = expected.noted([AbortTransfer(A), ExpectPages(A, [3, 4])])
    assert isinstance(second, ExpectPages)
    for late in (
        PagesArrived(A, 2, first.serial),
        PagesReceived(A, first.serial),
        ReceiveFailed(A, "peer lost", first.serial),
    ):
        assert not expected.is_current(late)
    assert expected.is_current(PagesReceived(A, second.serial))
    assert not expected.is_current(PagesArrived(A, 1, second.serial)), "it has ended"
    expected.noted([ExpectPages(B, [5]), AbortTransfer(B)])
    assert not expected.is_current(PagesReceived(B, second.serial + 1))


def test_a_request_that_came_again_is_not_ended_by_news_of_its_first_life() -> None:
    core, request = core_of(), generate("a", [1] * 40)

    def expect_of(instructions: list[Instruction]) -> ExpectPages:
        (expect,) = [i for i in instructions if isinstance(i, ExpectPages)]
        return expect

    core.handle(request, 0.0)
    first = expect_of(core.next_batch(0.0)[1])
    core.handle(Cancel(A), 0.0)
    core.handle(request, 0.0)
    second = expect_of(core.next_batch(0.0)[1])
    assert core.handle(ReceiveFailed(A, "peer lost", first.serial), 0.0) == []
    assert core.load().num_running == 1
    assert core.handle(ReceiveFailed(A, "peer lost", second.serial), 0.0) != []
    assert core.load().num_running == 0


# Operators


def test_an_operator_audits_flushes_one_tenant_and_has_it_republished() -> None:
    cache, hasher = PrefixCache(16, LAYOUT.page_size), PageHasher("model", LAYOUT)
    chains = {salt: hasher.hashes(range(40), Namespace(salt)) for salt in ("", "acme", "other")}
    for salt, hashes in chains.items():
        held = cache.acquire(hashes, 3, 0.0, Namespace(salt))
        assert held is not None
        cache.commit(held, hashes, 0.0)
        cache.release(held)
    core = core_of(cache)

    def reply_to(wish: FlushCache | AuditPages) -> Message:
        (send,) = core.handle(wish, 0.0)
        assert isinstance(send, SendMessage) and send.address == COORDINATOR
        return send.message

    def owned() -> set[bytes]:
        reply = reply_to(AuditPages(COORDINATOR, "a1"))
        assert isinstance(reply, AuditReply) and reply.audit_id == "a1"
        return set(split_hashes(reply.hashes))

    assert owned() == {*chains[""], *chains["acme"], *chains["other"]}
    assert reply_to(FlushCache(COORDINATOR, "f1", "acme")) == CacheFlushed(D0, "f1", 2)
    assert owned() == {*chains[""], *chains["other"]}
    assert reply_to(FlushCache(COORDINATOR, "f2", "")) == CacheFlushed(D0, "f2", 2)
    assert reply_to(FlushCache(COORDINATOR, "f3")) == CacheFlushed(D0, "f3", 2)
    assert owned() == set()
    assert core.handle(Republish(), 0.0) == [RewriteRecord()]


# Coordinators


def test_a_coordinator_is_silent_once_its_longest_lease_has_ended() -> None:
    leases = CoordinatorLeases()
    leases.heard("c0", lease_s=3.0, now=1.0)
    leases.heard("c0", lease_s=1.0, now=2.0)
    leases.heard("c1", lease_s=9.0, now=2.0)
    assert leases.take_silent(3.9) == []
    assert leases.take_silent(4.0) == ["c0"]
    assert leases.take_silent(5.0) == [], "it is told once"
    assert leases.take_silent(11.0) == ["c1"]


@pytest.mark.parametrize("prefill", [PREFILL, ""])
def test_requests_of_a_silent_coordinator_are_dropped_and_no_others(prefill: str) -> None:
    """Running here, received from a prefill node, and waiting."""
    core = NodeCore(
        D0, cache := PrefixCache(64, LAYOUT.page_size), decode_scheduler(cache=cache, running=2)
    )
    for name in ("a", "b"):
        core.handle(generate(name, [ord(name)] * 20, 50, prefill), 0.0)
    other = generate("c", [9] * 20, 50, prefill="", reply_address="another")
    core.handle(other, 1.0)
    for now in (1.0, COORDINATOR_LEASE_S - 0.1):
        if slices := core.next_batch(now)[0]:
            core.finish([Sampled((7,))] * len(slices), now)
        assert (core.load().num_running, core.load().num_waiting) == (2, 1)
    slices, instructions = core.next_batch(COORDINATOR_LEASE_S)
    aborts = [i.transfer for i in instructions if isinstance(i, AbortTransfer)]
    assert aborts == ([A, B] if prefill else [])
    assert len(slices) == 1 and list(slices[0].token_ids) == [9] * 20
    (send,) = core.finish([Sampled((7,))], COORDINATOR_LEASE_S)
    assert isinstance(send, SendMessage) and send.address == "another"
    assert isinstance(send.message, TokensOut)
    core.handle(Cancel(other.attempt), COORDINATOR_LEASE_S)
    assert core.load().held_pages == core.load().num_waiting == 0


def test_a_coordinator_that_is_heard_keeps_its_requests() -> None:
    core = core_of()
    core.handle(generate("a", [1] * 20, 50, prefill=""), 0.0)
    for second in range(1, 10):
        core.handle(CoordinatorAlive(COORDINATOR, lease_s=1.5), float(second))
        slices, _ = core.next_batch(second + 0.4)
        assert len(slices) == 1
        core.finish([Sampled((7,))], second + 0.4)
    assert core.next_batch(10.5)[0] == []
    assert core.load().held_pages == core.load().num_running == 0


def test_a_coordinator_that_comes_back_is_served_again() -> None:
    core = core_of()
    core.handle(generate("a", [1] * 20, 50, prefill=""), 0.0)
    assert core.next_batch(5.0)[0] == []
    core.handle(generate("a", [1] * 20, 50, prefill="", number=2), 6.0)
    assert len(core.next_batch(6.0)[0]) == 1

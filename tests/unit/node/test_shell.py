"""What a shell does for a scheduler, for other nodes and for an operator."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.cache.prefix_cache import PrefixCache
from engine.errors import DeviceBroken
from node.core.instructions import (
    AbortTransfer,
    Event,
    ExpectPages,
    PagesArrived,
    PagesReceived,
    ReceiveFailed,
)
from node.shell.shell import NodeShell
from protocol.hashing import PageHasher, split_hashes, token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import (
    AuditPages,
    AuditReply,
    CacheFlushed,
    Failed,
    FlushCache,
    Message,
    PrefillDone,
    Republish,
)
from protocol.namespace import Namespace
from tests.support.nodes import LAYOUT
from tests.support.played import POISON, Peers, shell_of, step_of
from tests.support.world import COORDINATOR, P0, asked_prefill, decode_scheduler, prefill_scheduler


class Operator:
    """An operator's view of a node: stands in for its channel and for its publisher."""

    def __init__(self, cache: PrefixCache) -> None:
        me: Any = self
        unused: Any = None
        self._shell = NodeShell(
            Node("d0", 1), me, unused, cache, unused, unused, me, heartbeats=unused
        )
        self.replies: list[Message] = []
        self.num_republished = 0

    def send(self, address: str, message: Message) -> None:
        assert address == COORDINATOR
        self.replies.append(message)

    def republish(self) -> None:
        self.num_republished += 1

    def wants(self, message: Message) -> list[Message]:
        self.replies = []
        self._shell._operate(message)  # type: ignore[arg-type]
        return self.replies


def test_pages_stream_while_their_step_runs() -> None:
    scheduler, peers = prefill_scheduler(chunk=64), Peers()
    shell = shell_of(scheduler, ValueError("poison"), peers)
    for name in "ab":
        scheduler.handle(asked_prefill(name, 40), 0.0)
    step_of(scheduler, shell)
    assert [type(said) for said in peers.said] == [PrefillDone]
    said = ("stream", "layers 1", "layers 2", "finish")
    assert peers.told == [(what, name) for what in said for name in "ab"]
    peers.told.clear()
    step_of(scheduler, shell)
    assert peers.told == [(what, "b") for what in said], "a is finished and forgotten"


def test_a_step_that_failed_ends_the_stream_of_who_failed_it() -> None:
    scheduler, peers = prefill_scheduler(chunk=64), Peers()
    shell = shell_of(scheduler, ValueError("poison"), peers)
    scheduler.handle(asked_prefill("a", 20), 0.0)
    poisoned = msgspec.structs.replace(asked_prefill("b", 0), tokens=token_bytes([POISON] * 40))
    scheduler.handle(poisoned, 0.0)
    step_of(scheduler, shell)
    failed, done = peers.said
    assert done == PrefillDone(Attempt("a", 1), [5], 0, P0)
    said = ("stream", "layers 1")
    expected = [(what, name) for what in said for name in "ab"]
    assert peers.told == [*expected, ("cancel", "b"), ("finish", "a")]
    assert isinstance(failed, Failed) and failed.attempt == Attempt("b", 1)
    for event in shell._events(wait=False):
        scheduler.handle(event, 0.0)
    assert scheduler.load().held_pages == 2, "those of a are still being sent"


def test_a_broken_device_finishes_no_stream() -> None:
    scheduler, peers = prefill_scheduler(), Peers()
    shell = shell_of(scheduler, DeviceBroken("illegal memory access"), peers)
    poisoned = msgspec.structs.replace(asked_prefill("b", 0), tokens=token_bytes([POISON] * 20))
    scheduler.handle(poisoned, 0.0)
    with pytest.raises(DeviceBroken):
        step_of(scheduler, shell)
    assert peers.told == [("stream", "b"), ("layers 1", "b")]


def test_a_heartbeat_tells_of_every_link() -> None:
    scheduler = decode_scheduler()
    load = shell_of(scheduler, ValueError("poison"))._load(idle=True)
    assert load.counters.bytes_sent == 12_007
    assert load.link_bytes_per_s == 3e6, "the mean of those that were measured"
    assert [link.peer for link in load.links] == ["p2", "p1", "p0", "p3"]
    assert load.free_pages == scheduler.load().free_pages


def test_of_pages_that_arrive_only_the_newest_number_is_told() -> None:
    peers = Peers()
    shell = shell_of(decode_scheduler(), ValueError("poison"), peers)
    a, b = Attempt("a", 1), Attempt("b", 1)

    def events() -> list[Event]:
        return list(shell._events(wait=False))

    shell._execute([ExpectPages(a, [1, 2, 3, 4]), ExpectPages(b, [5, 6])])
    for num_pages in (1, 2):
        peers.on_progress[a](num_pages)
    peers.on_progress[b](1)
    peers.on_progress[a](3)
    peers.on_done[a]("")
    assert events() == [PagesArrived(a, 3), PagesArrived(b, 1), PagesReceived(a)]
    peers.on_done[b]("peer lost")
    assert events() == [ReceiveFailed(b, "peer lost")]
    shell._execute([ExpectPages(a, [1, 2])])
    peers.on_progress[a](1)
    shell._execute([AbortTransfer(a)])
    assert events() == []


def test_an_operator_audits_flushes_one_tenant_and_has_it_republished() -> None:
    cache, hasher = PrefixCache(16), PageHasher("model", LAYOUT)
    chains = {salt: hasher.hashes(range(40), Namespace(salt)) for salt in ("", "acme", "other")}
    for salt, hashes in chains.items():
        lease = cache.acquire(hashes, 3, 0.0, Namespace(salt))
        assert lease is not None
        cache.commit(lease, hashes, 0.0)
        cache.release(lease)
    operator = Operator(cache)

    def owned() -> set[bytes]:
        (reply,) = operator.wants(AuditPages(COORDINATOR, "a1"))
        assert isinstance(reply, AuditReply) and reply.audit_id == "a1"
        return set(split_hashes(reply.hashes))

    assert owned() == {*chains[""], *chains["acme"], *chains["other"]}
    node = Node("d0", 1)
    flush = FlushCache(COORDINATOR, "f1", "acme")
    assert operator.wants(flush) == [CacheFlushed(node, "f1", 2)]
    assert owned() == {*chains[""], *chains["other"]}
    assert operator.wants(FlushCache(COORDINATOR, "f2", "")) == [CacheFlushed(node, "f2", 2)]
    assert operator.wants(FlushCache(COORDINATOR, "f3")) == [CacheFlushed(node, "f3", 2)]
    assert owned() == set()
    assert operator.wants(Republish()) == []
    assert operator.num_republished == 1

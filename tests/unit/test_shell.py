"""The shell's step, what it does for a scheduler, and how large a pool a node takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
import torch
from nodes import LAYOUT
from world import (
    COORDINATOR,
    DECODE,
    P0,
    asked_prefill,
    decode_scheduler,
    generate,
    prefill_scheduler,
)

from engine.cache import PrefixCache
from engine.model import OnLayer
from engine.request import Slice
from infra.cluster import ClusterPlan, LocalCluster
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream
from node import build
from node import shell as shell_module
from node.build import CPU_POOL_TOKENS
from node.config import NodeConfig
from node.instructions import (
    AbortTransfer,
    Event,
    ExpectPages,
    Instruction,
    PagesArrived,
    PagesReceived,
    ReceiveFailed,
    Send,
)
from node.shell import NodeShell
from prefill.scheduler import PrefillScheduler
from protocol.config import ConfigError
from protocol.hashing import PageHasher, split_hashes, token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import (
    AnyMessage,
    AuditPages,
    AuditReply,
    CacheFlushed,
    Failed,
    FlushCache,
    Message,
    PrefillDone,
    Republish,
    TokensOut,
)

POISON = 777
GIB = 1 << 30


class Runner:
    """Answers 5 to everything and fails on one token, as a faulty kernel might."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, slices: Sequence[Slice], on_layer: OnLayer | None = None) -> list[int | None]:
        """Of two layers; the error comes after the first one."""
        if on_layer is not None:
            on_layer(1)
        if any(POISON in part.token_ids for part in slices):
            raise self._error
        if on_layer is not None:
            on_layer(2)
        return [5 if part.sampling else None for part in slices]


class Peers:
    """Everybody else: stands in for a node's channel and for its transport."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.told: list[tuple[str, str]] = []
        """What the transport was told, and of which request."""
        self.on_progress: dict[Attempt, OnProgress] = {}
        self.on_done: dict[Attempt, OnDone] = {}

    # A channel

    def send(self, address: str, message: Message) -> None:
        self.said.append(message)

    def drain(self, timeout_s: float) -> list[AnyMessage]:
        return []

    def wake(self) -> None:
        pass

    def forget(self, address: str) -> None:
        raise AssertionError("everybody can be reached")

    # A transport

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> PageStream:
        assert peer == (DECODE,)
        self.told.append(("stream", transfer.request_id))
        self.on_done[transfer] = on_done
        return Stream(transfer, self.told)

    def cancel(self, transfer: Attempt) -> None:
        self.told.append(("cancel", transfer.request_id))
        self.on_done[transfer]("cancelled")

    def expect(
        self,
        transfer: Attempt,
        pages: Sequence[int],
        on_progress: OnProgress,
        on_done: OnDone,
    ) -> None:
        self.on_progress[transfer], self.on_done[transfer] = on_progress, on_done

    def links(self) -> list[LinkStats]:
        return [
            LinkStats("p0", "in", "shm", True, 10, 1, 0.5, 0.0, 0),
            LinkStats("p1", "out", "shm", True, 4000, 2, 0.5, 2e6, 0),
            LinkStats("p2", "out", "shm", True, 8000, 4, 0.5, 4e6, 0),
            LinkStats("p3", "out", "shm", False, 7, 1, 0.5, 0.0, 3),
        ]

    def abort(self, transfer: Attempt) -> None:
        self.told.append(("abort", transfer.request_id))


class Stream:
    def __init__(self, transfer: Attempt, told: list[tuple[str, str]]) -> None:
        self._name, self._told = transfer.request_id, told

    def layers_ready(self, num_layers: int) -> None:
        self._told.append((f"layers {num_layers}", self._name))

    def finish(self) -> None:
        self._told.append(("finish", self._name))


def shell_of(scheduler: Any, error: Exception, peers: Peers | None = None) -> NodeShell:
    others: list[Any] = [peers or Peers(), None, None]
    return NodeShell(Node("d0", 1), peers or Peers(), scheduler, None, Runner(error), *others)  # type: ignore[arg-type]


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


def test_a_request_that_breaks_a_step_harms_nobody_else() -> None:
    scheduler, peers = decode_scheduler(), Peers()
    shell = shell_of(scheduler, ValueError("poison"), peers)
    for name, token in (("good", 1), ("bad", POISON), ("fine", 2)):
        scheduler.handle(generate(name, [token] * 5, prefill=""), 0.0)
    slices, _ = scheduler.next_batch(0.0)
    assert len(slices) == 3
    (tokens,) = [i.message for i in shell._step(slices) if isinstance(i, Send)]
    (failed,) = peers.said
    assert isinstance(failed, Failed) and failed.attempt.request_id == "bad"
    assert "ValueError" in failed.reason
    assert isinstance(tokens, TokensOut)
    assert [out.attempt.request_id for out in tokens.outs] == ["good", "fine"]
    for _ in range(5):  # a request like it, again and again, does not end the node
        scheduler.handle(generate("bad", [POISON] * 5, prefill=""), 0.0)
        slices, _ = scheduler.next_batch(0.0)
        shell._step(slices)
    assert len(peers.said) == 1 + 5
    assert scheduler.load().held_pages == 0


def test_a_broken_device_ends_the_node() -> None:
    scheduler = decode_scheduler()
    shell = shell_of(scheduler, torch.AcceleratorError("illegal memory access"))
    scheduler.handle(generate("r", [POISON] * 5, prefill=""), 0.0)
    slices, _ = scheduler.next_batch(0.0)
    with pytest.raises(torch.AcceleratorError):
        shell._step(slices)


def step_of(scheduler: PrefillScheduler, shell: NodeShell) -> list[Instruction]:
    slices, instructions = scheduler.next_batch(0.0)
    shell._execute(instructions)
    return shell._step(slices)


def test_pages_stream_while_their_step_runs() -> None:
    scheduler, peers = prefill_scheduler(chunk=64), Peers()
    shell = shell_of(scheduler, ValueError("poison"), peers)
    for name in "ab":
        scheduler.handle(asked_prefill(name, 40), 0.0)
    (done,) = step_of(scheduler, shell)
    assert isinstance(done, Send) and isinstance(done.message, PrefillDone)
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
    (done,) = step_of(scheduler, shell)
    assert isinstance(done, Send) and done.message == PrefillDone(Attempt("a", 1), 5, 0, P0)
    said = ("stream", "layers 1")
    expected = [(what, name) for what in said for name in "ab"]
    assert peers.told == [*expected, ("cancel", "b"), ("finish", "a")]
    (failed,) = peers.said
    assert isinstance(failed, Failed) and failed.attempt == Attempt("b", 1)
    for event in shell._events(wait=False):
        scheduler.handle(event, 0.0)
    assert scheduler.load().held_pages == 2, "those of a are still being sent"


def test_a_broken_device_finishes_no_stream() -> None:
    scheduler, peers = prefill_scheduler(), Peers()
    shell = shell_of(scheduler, torch.AcceleratorError("illegal memory access"), peers)
    poisoned = msgspec.structs.replace(asked_prefill("b", 0), tokens=token_bytes([POISON] * 20))
    scheduler.handle(poisoned, 0.0)
    with pytest.raises(torch.AcceleratorError):
        step_of(scheduler, shell)
    assert peers.told == [("stream", "b"), ("layers 1", "b")]


def test_a_heartbeat_tells_of_every_link() -> None:
    scheduler = decode_scheduler()
    load = shell_of(scheduler, ValueError("poison"))._load(idle=True)
    assert load.bytes_sent_total == 12_007
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


def test_busy_time_is_that_of_steps_failed_ones_included(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = decode_scheduler()
    shell = shell_of(scheduler, ValueError("poison"))
    clock = itertools.count()
    monkeypatch.setattr(shell_module.time, "monotonic", lambda: float(next(clock)))
    scheduler.handle(generate("bad", [POISON] * 5, prefill=""), 0.0)
    slices, _ = scheduler.next_batch(0.0)
    shell._step(slices)
    assert shell._busy_s == 2.0, "the step, and the same sequence alone"


def test_an_operator_audits_flushes_one_tenant_and_has_it_republished() -> None:
    cache, hasher = PrefixCache(16), PageHasher("model", LAYOUT)
    chains = {salt: hasher.hashes(range(40), salt) for salt in ("", "acme", "other")}
    for salt, hashes in chains.items():
        lease = cache.acquire(hashes, 3, 0.0, salt)
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


def pool_tokens(
    monkeypatch: pytest.MonkeyPatch, device: str, available: int, total: int, share: float = 1.0
) -> int:
    monkeypatch.setattr(build, "memory_bytes", lambda _: (available, total))
    config = NodeConfig(memory_share=share)
    return build._pool_pages(config, LAYOUT, torch.device(device)) * LAYOUT.page_size


def test_a_laptop_with_little_free_memory_still_gets_a_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = pool_tokens(monkeypatch, "cpu", GIB // 16, 16 * GIB)
    quarter = pool_tokens(monkeypatch, "cpu", GIB // 16, 16 * GIB, share=0.25)
    assert 10_000 < whole < CPU_POOL_TOKENS
    assert quarter == pytest.approx(whole / 4, abs=LAYOUT.page_size)
    assert pool_tokens(monkeypatch, "cpu", 16 * GIB, 16 * GIB) == CPU_POOL_TOKENS
    with pytest.raises(ConfigError, match="--memory-share"):
        pool_tokens(monkeypatch, "cpu", 100, 16 * GIB)


def test_a_local_cluster_shares_its_memory_out(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Mapping[str, str]] = []
    cluster = LocalCluster(ClusterPlan(2, 2, "127.0.0.1", 1))
    monkeypatch.setattr(cluster, "start_process", lambda role, name, flags: started.append(flags))
    cluster.start_node("prefill", "p0")
    monkeypatch.setenv("KVRELAY_MEMORY_SHARE", "0.9")
    cluster.start_node("prefill", "p1")
    assert float(started[0]["memory_share"]) == 0.25
    assert "memory_share" not in started[1], "the variable counts"


def test_nodes_that_share_a_gpu_all_get_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    available, pools = 79 * GIB, []
    for _ in range(4):
        tokens = pool_tokens(monkeypatch, "cuda", available, 80 * GIB, share=0.25)
        pools.append(tokens)
        available -= tokens // LAYOUT.page_size * LAYOUT.page_bytes
    assert min(pools) > 0.9 * max(pools)
    assert available >= 0.15 * 80 * GIB

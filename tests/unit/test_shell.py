"""The shell's step, and how large a pool a node takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from nodes import LAYOUT
from test_schedulers import COORDINATOR, decode_scheduler, generate

from engine.cache import PrefixCache
from engine.request import Slice
from infra.cluster import ClusterPlan, LocalCluster
from node import build
from node import shell as shell_module
from node.build import CPU_POOL_TOKENS
from node.config import NodeConfig
from node.instructions import Send
from node.shell import NodeShell
from protocol.config import ConfigError
from protocol.hashing import PageHasher, split_hashes
from protocol.ids import Node
from protocol.messages import (
    AuditPages,
    AuditReply,
    CacheFlushed,
    Failed,
    FlushCache,
    Message,
    Republish,
    TokensOut,
)

POISON = 777
GIB = 1 << 30


class Runner:
    """Answers 5 to everything and fails on one token, as a faulty kernel might."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, slices: Sequence[Slice]) -> list[int | None]:
        if any(POISON in part.token_ids for part in slices):
            raise self._error
        return [5 if part.sampling else None for part in slices]


def shell_of(scheduler: Any, error: Exception) -> NodeShell:
    others: list[Any] = [None] * 3
    return NodeShell(Node("d0", 1), None, scheduler, None, Runner(error), *others)  # type: ignore[arg-type]


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
    scheduler = decode_scheduler()
    shell = shell_of(scheduler, ValueError("poison"))
    for name, token in (("good", 1), ("bad", POISON), ("fine", 2)):
        scheduler.handle(generate(name, [token] * 5, prefill=""), 0.0)
    slices, _ = scheduler.next_batch(0.0)
    assert len(slices) == 3
    failed, tokens = [i.message for i in shell._step(slices) if isinstance(i, Send)]
    assert isinstance(failed, Failed) and failed.attempt.request_id == "bad"
    assert "ValueError" in failed.reason
    assert isinstance(tokens, TokensOut)
    assert [out.attempt.request_id for out in tokens.outs] == ["good", "fine"]
    for _ in range(5):  # a request like it, again and again, does not end the node
        scheduler.handle(generate("bad", [POISON] * 5, prefill=""), 0.0)
        slices, _ = scheduler.next_batch(0.0)
        instructions = shell._step(slices)
        assert any(isinstance(i, Send) and i.address == COORDINATOR for i in instructions)
    assert scheduler.load().held_pages == 0


def test_a_broken_device_ends_the_node() -> None:
    scheduler = decode_scheduler()
    shell = shell_of(scheduler, torch.AcceleratorError("illegal memory access"))
    scheduler.handle(generate("r", [POISON] * 5, prefill=""), 0.0)
    slices, _ = scheduler.next_batch(0.0)
    with pytest.raises(torch.AcceleratorError):
        shell._step(slices)


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

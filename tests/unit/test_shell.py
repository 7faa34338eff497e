"""The shell's step, what it does for a scheduler, and how large a pool a node takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import torch
from nodes import LAYOUT
from world import (
    COORDINATOR,
    DECODE,
    GREEDY,
    P0,
    asked_prefill,
    decode_scheduler,
    generate,
    prefill_scheduler,
)

from engine.cache import PrefixCache
from engine.model import OnLayer
from engine.request import Sampled, Slice
from infra.cluster import ClusterPlan, LocalCluster
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream
from node.instructions import (
    AbortTransfer,
    Event,
    ExpectPages,
    PagesArrived,
    PagesReceived,
    ReceiveFailed,
)
from node.shell import NodeShell
from node.steps import Steps
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
from protocol.sampling import Sampling

POISON = 777
GIB = 1 << 30


@dataclass(frozen=True, eq=False)
class Step:
    """Answers 5 to everything. Fails when it is asked, if it has an error."""

    number: int
    slices: Sequence[Slice]
    told: list[str]
    error: Exception | None = None

    def sampled(self) -> list[Sampled | None]:
        self.told.append(f"wait {self.number}")
        if self.error is not None:
            raise self.error
        return [Sampled(5) if part.sampling else None for part in self.slices]


class Runner:
    """Fails on one token, as a faulty kernel might."""

    def __init__(
        self, error: Exception, runs_ahead: bool = False, fails_late: bool = False
    ) -> None:
        """`fails_late`: not when a step is started, but when its tokens are asked for."""
        self.runs_ahead = runs_ahead
        self.told: list[str] = []
        self._error = error
        self._fails_late = fails_late
        self._num_started = 0

    def start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None = None, after: Step | None = None
    ) -> Step:
        """Of two layers; the error comes after the first one."""
        self._num_started += 1
        self.told.append(f"start {self._num_started}")
        fails = any(POISON in part.token_ids for part in slices)
        if on_layer is not None:
            on_layer(1)
        if fails and not self._fails_late:
            raise self._error
        if on_layer is not None:
            on_layer(2)
        for part in slices:
            if part.follows is not None:
                assert after is not None and after.slices[part.follows].sampling is not None
        return Step(self._num_started, slices, self.told, self._error if fails else None)


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


def shell_of(
    scheduler: Any, error: Exception, peers: Peers | None = None, runner: Runner | None = None
) -> NodeShell:
    others: list[Any] = [runner or Runner(error), peers or Peers(), None, None]
    return NodeShell(Node("d0", 1), peers or Peers(), scheduler, None, *others)  # type: ignore[arg-type]


def step_of(scheduler: Any, shell: NodeShell) -> int:
    """Plans a step, starts it and waits for it; returns its number of slices."""
    slices, instructions = scheduler.next_batch(0.0)
    shell._execute(instructions)
    shell._start(slices)
    shell._settle()
    return len(slices)


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
    assert step_of(scheduler, shell) == 3
    failed, tokens = peers.said
    assert isinstance(failed, Failed) and failed.attempt.request_id == "bad"
    assert "ValueError" in failed.reason
    assert isinstance(tokens, TokensOut)
    assert [out.attempt.request_id for out in tokens.outs] == ["good", "fine"]
    for _ in range(5):  # a request like it, again and again, does not end the node
        scheduler.handle(generate("bad", [POISON] * 5, prefill=""), 0.0)
        step_of(scheduler, shell)
    assert len([said for said in peers.said if isinstance(said, Failed)]) == 1 + 5
    assert scheduler.load().held_pages == 0


def test_a_broken_device_ends_the_node() -> None:
    scheduler = decode_scheduler()
    shell = shell_of(scheduler, torch.AcceleratorError("illegal memory access"))
    scheduler.handle(generate("r", [POISON] * 5, prefill=""), 0.0)
    with pytest.raises(torch.AcceleratorError):
        step_of(scheduler, shell)


class Life:
    """A whole life of a decode node: it is told `messages`, and stops when it has nothing to do."""

    def __init__(self, runner: Runner, messages: list[AnyMessage]) -> None:
        self.peers, self._messages = Peers(), messages
        me, cache = self, PrefixCache(16)

        class Outside(Peers):
            """Of the loop: its channel, publisher and heartbeats."""

            def send(self, address: str, message: Message) -> None:
                me.peers.said.append(message)

            def drain(self, timeout_s: float) -> list[AnyMessage]:
                if timeout_s > 0 and not me._messages:
                    me._shell.stop()
                told, me._messages = me._messages, []
                return told

            def links(self) -> list[LinkStats]:
                return []

            def publish(self, changes: object) -> None:
                pass

            def update(self, load: object) -> None:
                pass

        outside: Any = Outside()
        scheduler: Any = decode_scheduler(cache=cache)
        fake: Any = runner
        self._shell = NodeShell(
            Node("d0", 1), outside, scheduler, cache, fake, outside, outside, outside
        )
        self._shell.run()
        assert scheduler.load().held_pages == 0
        self.ends = {
            out.attempt.request_id: out.finish
            for said in self.peers.said
            if isinstance(said, TokensOut)
            for out in said.outs
        } | {
            said.attempt.request_id: said.reason
            for said in self.peers.said
            if isinstance(said, Failed)
        }


def started_and_awaited(*numbers: int) -> list[str]:
    """1: step 1 is started; -1: it is waited for."""
    return [f"start {n}" if n > 0 else f"wait {-n}" for n in numbers]


PENALTY = Sampling(frequency_penalty=0.5)


@pytest.mark.parametrize(
    ("runs_ahead", "sampling", "expected"),
    [
        (False, GREEDY, (1, -1, 2, -2, 3, -3)),
        (True, GREEDY, (1, 2, -1, 3, -2, -3)),
        (True, PENALTY, (1, -1, 2, -2, 3, -3)),
    ],
)
def test_a_step_is_started_before_the_tokens_of_the_one_before_are_known(
    runs_ahead: bool, sampling: Sampling, expected: tuple[int, ...]
) -> None:
    """Where the device can, and nobody's choice depends on those tokens. None is started whose
    tokens cannot be wanted."""
    runner = Runner(ValueError("poison"), runs_ahead)
    life = Life(runner, [generate("r", [1] * 5, 3, prefill="", sampling=sampling)])
    assert runner.told == started_and_awaited(*expected)
    assert life.ends == {"r": "length"}


def test_a_stop_token_costs_a_step_that_runs_ahead_and_no_more() -> None:
    runner = Runner(ValueError("poison"), runs_ahead=True)
    life = Life(runner, [generate("r", [1] * 5, 9, prefill="", stops=[5])])
    assert runner.told == started_and_awaited(1, 2, -1, -2)
    assert life.ends == {"r": "stop"}
    assert sum(len(said.outs) for said in life.peers.said if isinstance(said, TokensOut)) == 1


@pytest.mark.parametrize("fails_late", [False, True])
@pytest.mark.parametrize("runs_ahead", [False, True])
def test_who_breaks_a_step_while_another_is_under_way_harms_nobody_else(
    runs_ahead: bool, fails_late: bool
) -> None:
    """The poisoned prompt is longer than a step: it joins the answers that run ahead."""
    runner = Runner(ValueError("poison"), runs_ahead, fails_late)
    good = [generate(name, [1] * 5, 6, prefill="") for name in ("a", "b")]
    poisoned = generate("bad", [1] * 60 + [POISON] * 5, 6, prefill="")
    life = Life(runner, [good[0], poisoned, good[1]])
    assert life.ends == {"a": "length", "b": "length", "bad": "a step failed on d0: ValueError"}


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
    assert done == PrefillDone(Attempt("a", 1), 5, 0, P0)
    said = ("stream", "layers 1")
    expected = [(what, name) for what in said for name in "ab"]
    assert peers.told == [*expected, ("cancel", "b"), ("finish", "a")]
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
    now = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    scheduler.handle(generate("bad", [POISON] * 5, prefill=""), 0.0)
    step_of(scheduler, shell)
    assert shell._steps.busy_s == 1.0, "from its start to its end, the second try included"
    assert shell._steps.rates.prefill_tokens_per_s == shell._steps.rates.step_s == 0.0


def test_a_step_that_waited_for_the_one_before_took_the_time_since_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner: Any = Runner(ValueError("poison"), runs_ahead=True)
    steps, clock = Steps(runner), iter([0.0, 1.0, 10.0, 14.0, 20.0, 26.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    parts = [Slice([1], 0, [0], GREEDY)]
    for _ in range(2):  # started at 0 and 1, over at 10 and 14
        steps.start(parts, lambda _: None)
    for expected in (10.0, 0.8 * 10.0 + 0.2 * 4.0):
        steps.settle()
        assert steps.rates.step_s == pytest.approx(expected)
    steps.start(parts, lambda _: None)
    steps.settle()
    assert steps.busy_s == 14.0 + 6.0


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


def test_a_local_cluster_shares_its_memory_out(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Mapping[str, str]] = []
    cluster = LocalCluster(ClusterPlan(2, 2, "127.0.0.1", 1))
    monkeypatch.setattr(cluster, "start_process", lambda role, name, flags: started.append(flags))
    cluster.start_node("prefill", "p0")
    monkeypatch.setenv("KVRELAY_MEMORY_SHARE", "0.9")
    cluster.start_node("prefill", "p1")
    assert float(started[0]["memory_share"]) == 0.25
    assert "memory_share" not in started[1], "the variable counts"

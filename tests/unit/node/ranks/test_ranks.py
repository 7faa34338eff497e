"""Rank 0 and a worker: the same steps on both, and what becomes of a node whose ranks disagree."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from engine.batches.sequence import Slice
from engine.batches.step import OnLayer, Step
from engine.steps.runner import DeviceStep
from node.ranks import workers
from node.ranks.operations import Operations
from node.ranks.runner import ParallelRunner
from node.ranks.wire import commands
from node.ranks.wire.pipe import Pipe, RankLost
from node.ranks.worker import Worker
from node.ranks.workers import WorkerHandle, Workers
from protocol.ids import Node
from protocol.sampling import Sampling
from tests.support.engine.driving import CPU

DEADLINE_S = 10.0
NODE = Node("d0", 1)
PART = Slice([1, 2], 0, [4, 5], None)
Fault = Callable[[Operations], None]


class FakeRunner:
    """Two collective operations a step; `faults` has what goes wrong between them, by step."""

    runs_ahead = False
    num_compiles = 0

    def __init__(self) -> None:
        self.operations = Operations()
        self.faults: dict[int, Fault] = {}
        self.slices: list[Sequence[Slice]] = []
        self.followed: list[Step | None] = []
        self.steps: list[Step] = []
        self.ended: queue.Queue[int] = queue.Queue()
        self.copied: queue.Queue[tuple[list[int], list[int]]] = queue.Queue()
        self.started: queue.Queue[None] = queue.Queue()

    def start(
        self,
        slices: Sequence[Slice],
        on_layer: OnLayer | None = None,
        after: Step | None = None,
    ) -> Step:
        self.slices.append(slices)
        self.followed.append(after)
        self.started.put(None)
        self.operations.begin()
        if on_layer is not None:
            on_layer(1)
        if fault := self.faults.get(len(self.slices)):
            fault(self.operations)
        self.operations.begin()
        step = DeviceStep.of(slices, None, CPU)
        self.steps.append(step)
        return step

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        self.copied.put((list(sources), list(destinations)))

    def end_sequence(self, sequence_id: int) -> None:
        self.ended.put(sequence_id)


class FakeTransport:
    def __init__(self) -> None:
        self.layers: list[int] = []

    def layers_ready(self, num_layers: int) -> None:
        self.layers.append(num_layers)


class FakeProcess:
    exitcode = -9

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return False


class Ranks:
    """A node of two ranks; the worker is a thread."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        self.own, self.other, self.transport = FakeRunner(), FakeRunner(), FakeTransport()
        self.pipe: Pipe[commands.AnyCommand] = Pipe(there, commands.AnyCommand)
        handle = WorkerHandle(1, FakeProcess(), Pipe(here, commands.AnyReport))  # type: ignore[arg-type]
        self.workers = Workers(NODE, [handle])
        self.lost: queue.Queue[str] = queue.Queue()
        self.workers.when_lost(self.lost.put)
        self.runner = ParallelRunner(self.own, self.workers, self.own.operations)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self._work)

    def begin(self) -> None:
        self.thread.start()

    def _work(self) -> None:
        worker = Worker(self.other, self.transport, self.pipe, self.other.operations)  # type: ignore[arg-type]
        with pytest.raises(RankLost):
            worker.run()

    def await_other(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.other.started.get(timeout=DEADLINE_S)

    def close(self) -> None:
        self.workers.close()
        if self.thread.ident is not None:
            self.thread.join(DEADLINE_S)
            assert not self.thread.is_alive(), "the worker outlived its node"


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setattr(workers, "SAME_FAILURE_S", 0.5)
    ranks = Ranks()
    yield ranks
    ranks.close()


def fail(operations: Operations) -> None:
    raise ValueError("out of range")


def fail_later(operations: Operations) -> None:
    operations.begin()
    raise ValueError("out of range")


def fail_in_an_operation(operations: Operations) -> None:
    operations.failed()
    raise RuntimeError("connection reset")


def test_a_worker_takes_the_same_steps_and_follows_its_own(ranks: Ranks) -> None:
    ranks.begin()
    first = ranks.runner.start([PART], lambda _: None)
    second = ranks.runner.start([PART], None, first)
    ranks.runner.start([PART], None, first)  # as after a step that was of no use
    ranks.runner.start([PART], None, second)
    ranks.await_other(4)
    ranks.close()
    assert ranks.own.followed == [None, first, first, second]
    theirs = ranks.other.steps
    expected = [None, theirs[0], theirs[0], theirs[1]]
    assert all(a is b for a, b in zip(ranks.other.followed, expected, strict=True))
    for (part,) in ranks.other.slices:
        assert (list(part.token_ids), list(part.pages)) == ([1, 2], [4, 5])
    assert ranks.transport.layers == [1], "streams are fed by the steps that compute their pages"


def test_the_end_of_a_sequence_reaches_every_rank(ranks: Ranks) -> None:
    ranks.begin()
    part = Slice([1], 0, [4], Sampling(grammar="a"), sequence_id=7)
    for num_ended in range(2):  # a number that is used again is another sequence
        ranks.runner.start([part])
        ranks.await_other(1)
        assert ranks.other.slices[num_ended][0].sampling == part.sampling
        ranks.runner.end_sequence(7)
        for runner in (ranks.own, ranks.other):
            assert runner.ended.get(timeout=DEADLINE_S) == 7
    ranks.close()


def test_pages_are_copied_on_every_rank(ranks: Ranks) -> None:
    ranks.begin()
    ranks.runner.copy_pages([3, 5], [4, 1])
    for runner in (ranks.own, ranks.other):
        assert runner.copied.get(timeout=DEADLINE_S) == ([3, 5], [4, 1])
    ranks.close()


def test_an_error_that_all_ranks_meet_is_the_callers_and_the_node_goes_on(ranks: Ranks) -> None:
    ranks.own.faults = ranks.other.faults = {1: fail}
    ranks.begin()
    with pytest.raises(ValueError, match="out of range"):
        ranks.runner.start([PART])
    ranks.runner.start([PART])
    ranks.workers.raise_if_lost()
    assert ranks.lost.empty()


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (fail, None),
        (fail, fail_later),
        (fail_in_an_operation, fail),
        (fail_in_an_operation, fail_in_an_operation),
    ],
)
def test_ranks_that_stopped_at_different_places_end_the_node(
    ranks: Ranks, own: Fault, other: Fault | None
) -> None:
    ranks.own.faults = {1: own}
    ranks.other.faults = {1: other} if other is not None else {}
    ranks.begin()
    with pytest.raises(RankLost, match="d0 cannot go on and ends: a step failed on rank 0"):
        ranks.runner.start([PART])
    assert "they do not fit together any more" in ranks.lost.get(timeout=DEADLINE_S)
    with pytest.raises(RankLost):
        ranks.runner.start([PART])
    assert len(ranks.own.slices) == 1, "no operation can be trusted any more"
    assert ranks.lost.empty(), "it is told once"


def test_a_worker_that_fails_alone_ends_the_node(ranks: Ranks) -> None:
    ranks.other.faults = {1: fail}
    ranks.begin()
    ranks.runner.start([PART])
    reason = ranks.lost.get(timeout=DEADLINE_S)
    assert "a step failed on rank 1 alone (ValueError: out of range)" in reason
    with pytest.raises(RankLost):
        ranks.runner.start([PART])


def test_a_worker_that_is_gone_ends_the_node_whenever_it_goes(ranks: Ranks) -> None:
    ranks.pipe.close()
    assert "rank 1 of 2 is lost: it ended, its exit code is -9" in ranks.lost.get(
        timeout=DEADLINE_S
    )
    with pytest.raises(RankLost):
        ranks.workers.agree(5)
    told: list[str] = []
    ranks.workers.when_lost(told.append)
    assert len(told) == 1, "who asks late is told at once"


def test_ranks_agree_on_the_smallest_pool(ranks: Ranks) -> None:
    for theirs, ours, agreed in ((7, 9, 7), (9, 7, 7)):
        ranks.pipe.send(commands.PagesFit(theirs))
        assert ranks.workers.agree(ours) == agreed
        assert ranks.pipe.receive(DEADLINE_S) == commands.PoolPages(agreed)
    ranks.pipe.send(commands.Ready("10.0.0.1:5"))
    assert ranks.workers.addresses() == ["10.0.0.1:5"]


def test_what_keeps_a_worker_from_starting_is_told(ranks: Ranks) -> None:
    ranks.pipe.send(commands.StartFailed("there is no memory"))
    ranks.pipe.close()
    with pytest.raises(RankLost, match="rank 1: there is no memory"):
        ranks.workers.agree(5)


def test_nothing_is_lost_when_the_node_itself_ends(ranks: Ranks) -> None:
    ranks.begin()
    ranks.close()
    assert ranks.lost.empty()

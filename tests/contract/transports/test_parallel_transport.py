"""`ParallelTransport`: the transports of all ranks keep the promises of one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from kvtransfer.backends.faulty import FaultPlan, Faults
from kvtransfer.pages.layout import Shard
from node.ranks.executor import RankTransport
from node.ranks.transport import ParallelTransport
from node.ranks.wire.commands import TransportCommand, TransportReport
from protocol.ids import Attempt
from protocol.layout import KVLayout
from tests.support.transfer.endpoints import (
    DEADLINE_S,
    NUM_PAGES,
    Endpoint,
    Make,
    attempt,
    same,
    until,
)

LAYOUT = KVLayout(4, 3, 2, 8, "float32")
"""Two KV heads; four ranks hold each of them twice."""


class ParallelNode:
    """A node all of whose ranks are in this process: `tell` is a call."""

    def __init__(
        self, make: Make, name: str, num_ranks: int, faults: dict[int, Faults] | None = None
    ) -> None:
        self.ranks: list[Endpoint] = [
            make(
                f"{name}{rank}",
                layout=LAYOUT,
                shard=Shard(rank, num_ranks),
                faults=(faults or {}).get(rank),
                gpu=int(name == "d"),
                min_send_bytes=1,
            )
            for rank in range(num_ranks)
        ]
        self.addresses = [end.address for end in self.ranks]
        self.others: list[RankTransport] = []
        self.transport = ParallelTransport(
            self.ranks[0].transport, self.tell, self.addresses, LAYOUT
        )
        self.others += [
            RankTransport(end.transport, self.reporter(rank))
            for rank, end in enumerate(self.ranks)
            if rank > 0
        ]
        self.progress: queue.Queue[int] = queue.Queue()
        self.received: queue.Queue[str] = queue.Queue()
        self.sent: queue.Queue[str] = queue.Queue()

    def tell(self, command: TransportCommand) -> None:
        for other in self.others:
            other.do(command)

    def reporter(self, rank: int) -> Callable[[TransportReport], None]:
        return lambda report: self.transport.report(rank, report)

    def expect(self, transfer: Attempt, pages: Sequence[int]) -> None:
        self.transport.expect(transfer, pages, self.progress.put, self.received.put)

    def fill(self, whole: Tensor) -> None:
        """Writes to each rank's pool its heads of these pages."""
        for rank, end in enumerate(self.ranks):
            end.pool.copy_(whole[..., self.heads(rank), :])

    def heads(self, rank: int) -> slice:
        heads = Shard(rank, len(self.ranks)).heads(LAYOUT.num_kv_heads)
        return slice(heads.start, heads.stop)

    def has(self, whole: Tensor, source: list[int], target: list[int], num_layers: int = 3) -> bool:
        """Returns True if every rank has its heads of these pages, in the first layers."""
        return all(
            same(
                end.pool[:num_layers, target], whole[:num_layers, source][..., self.heads(rank), :]
            )
            for rank, end in enumerate(self.ranks)
        )

    def nothing_more(self) -> None:
        assert self.progress.empty() and self.received.empty() and self.sent.empty()


class LateNode(ParallelNode):
    """A node whose rank 1 is told late: after `expect` has returned, if that does not wait.

    What it does is noted before it is done, since `expect` may return as soon as it is.
    """

    def __init__(self, make: Make, name: str) -> None:
        self.has_returned = threading.Event()
        self.order: list[str] = []
        super().__init__(make, name, 2)

    def tell(self, command: TransportCommand) -> None:
        threading.Thread(target=self._do_late, args=(command,)).start()

    def _do_late(self, command: TransportCommand) -> None:
        self.has_returned.wait(0.2)
        self.order.append("expected by rank 1")
        super().tell(command)


@pytest.fixture
def nodes() -> Iterator[list[ParallelNode]]:
    made: list[ParallelNode] = []
    yield made
    for node in made:
        node.transport.close()


def pair(
    nodes: list[ParallelNode], make: Make, senders: int, receivers: int
) -> tuple[ParallelNode, ParallelNode, Tensor]:
    prefill, decode = ParallelNode(make, "p", senders), ParallelNode(make, "d", receivers)
    nodes += [prefill, decode]
    whole = torch.randn(3, NUM_PAGES, 2, 4, 2, 8)
    prefill.fill(whole)
    return prefill, decode, whole


def test_a_transfer_is_expected_by_all_ranks_before_anybody_is_asked_to_send_it(
    make: Make, nodes: list[ParallelNode]
) -> None:
    prefill, decode = ParallelNode(make, "p", 1), LateNode(make, "d")
    nodes += [prefill, decode]
    decode.expect(attempt(), [5])
    decode.order.append("returned")
    decode.has_returned.set()
    prefill.transport.send(decode.addresses, attempt(), [3], 0, prefill.sent.put)
    assert decode.received.get(timeout=DEADLINE_S) == ""
    assert decode.order == ["expected by rank 1", "returned"]


@pytest.mark.parametrize(("senders", "receivers"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_pages_arrive_on_every_rank_and_each_end_is_told_once(
    make: Make, nodes: list[ParallelNode], senders: int, receivers: int
) -> None:
    prefill, decode, whole = pair(nodes, make, senders, receivers)
    source, target = [7, 3, 60, 11], [5, 63, 0, 9]
    decode.expect(attempt(), target)
    prefill.transport.send(decode.addresses, attempt(), source[:2], 0, prefill.sent.put)
    assert prefill.sent.get(timeout=DEADLINE_S) == ""
    until(lambda: not decode.progress.empty() and decode.progress.queue[-1] == 2, "two pages")
    assert decode.has(whole, source[:2], target[:2])
    stream = prefill.transport.stream(decode.addresses, attempt(), source[2:], 2, prefill.sent.put)
    stream.layers_ready(1)
    for other in prefill.others:  # in their own steps
        other.layers_ready(1)
    until(lambda: decode.has(whole, source[2:], target[2:], 1), "the first layer's arrival")
    stream.finish()
    assert prefill.sent.get(timeout=DEADLINE_S) == ""
    assert decode.received.get(timeout=DEADLINE_S) == ""
    assert decode.has(whole, source, target)
    told = list(decode.progress.queue)
    assert told == sorted(set(told)) and set(told) <= {1, 2, 3}
    decode.progress.queue.clear()
    prefill.nothing_more()
    decode.nothing_more()


def test_one_rank_that_does_not_receive_fails_the_transfer_and_stops_the_others(
    make: Make, nodes: list[ParallelNode]
) -> None:
    decode = ParallelNode(make, "d", 2)
    prefill = ParallelNode(make, "p", 2, {1: Faults(FaultPlan(cut_sends=frozenset([1])))})
    nodes += [prefill, decode]
    decode.expect(attempt(), [0, 1, 2])
    for offset, page in enumerate((4, 5)):
        prefill.transport.send(decode.addresses, attempt(), [page], offset, prefill.sent.put)
        error = prefill.sent.get(timeout=DEADLINE_S)
        assert ("cut this send" in error) == (offset == 1)
    assert "p1" in decode.received.get(timeout=DEADLINE_S)
    before = decode.ranks[0].pool.clone()
    prefill.ranks[0].send(decode.addresses, attempt(), [6], offset=2)
    assert prefill.ranks[0].await_sent() == (attempt(), "")
    assert same(decode.ranks[0].pool, before), "a page was written after the end"
    decode.progress.queue.clear()
    decode.nothing_more()


def test_what_was_aborted_is_written_by_no_rank_and_can_be_expected_anew(
    make: Make, nodes: list[ParallelNode]
) -> None:
    prefill, decode, whole = pair(nodes, make, 2, 4)
    decode.expect(attempt(), [0, 1])
    decode.transport.abort(attempt())
    before = [end.pool.clone() for end in decode.ranks]
    prefill.transport.send(decode.addresses, attempt(), [4, 5], 0, prefill.sent.put)
    assert prefill.sent.get(timeout=DEADLINE_S) == ""
    assert all(same(end.pool, old) for end, old in zip(decode.ranks, before, strict=True))
    decode.transport.abort(attempt(9, "nobody knows it"))
    decode.nothing_more()
    decode.expect(attempt(), [0, 1])
    prefill.transport.send(decode.addresses, attempt(), [4, 5], 0, prefill.sent.put)
    assert decode.received.get(timeout=DEADLINE_S) == ""
    assert decode.has(whole, [4, 5], [0, 1])


def test_a_cancelled_stream_ends_on_every_rank(make: Make, nodes: list[ParallelNode]) -> None:
    prefill, decode, _ = pair(nodes, make, 2, 1)
    prefill.transport.stream(decode.addresses, attempt(), [1], 0, prefill.sent.put)
    prefill.transport.cancel(attempt())
    assert "cancelled" in prefill.sent.get(timeout=DEADLINE_S)
    for other in prefill.others:
        other.layers_ready(3)
    prefill.nothing_more()


def test_the_loss_of_a_rank_ends_all_and_nobody_waits(
    make: Make, nodes: list[ParallelNode]
) -> None:
    prefill, decode, _ = pair(nodes, make, 2, 2)
    decode.expect(attempt(), [0])
    decode.expect(attempt(2), [1])
    decode.others.clear()  # from here on rank 1 does nothing that it is told
    prefill.transport.stream(decode.addresses, attempt(), [1], 0, prefill.sent.put)
    for node in nodes:
        node.transport.lose("rank 1 is lost")
    assert prefill.sent.get(timeout=DEADLINE_S) == "rank 1 is lost"
    assert [decode.received.get(timeout=DEADLINE_S) for _ in range(2)] == ["rank 1 is lost"] * 2
    decode.expect(attempt(3), [2])
    for number in (1, 2, 3):
        decode.transport.abort(attempt(number))

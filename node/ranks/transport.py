"""`ParallelTransport`: the transports of all ranks of a node, which look like one to its shell."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvtransfer.pages.layout import Shard
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream, Transport
from node.ranks.executor import RankTransport
from node.ranks.merging import MergedArrivals, MergedSend, merge_links
from node.ranks.wire.commands import (
    AbortCommand,
    Aborted,
    Arrived,
    CancelCommand,
    ExpectCommand,
    Expecting,
    FinishStreamCommand,
    Links,
    Received,
    SendCommand,
    Sent,
    TransportCommand,
    TransportReport,
)
from node.ranks.wire.pipe import PATIENCE_S, RankLost
from protocol.ids import Attempt
from protocol.layout import KVLayout


@dataclass(eq=False)
class _Expected:
    transfer: Attempt
    arrivals: MergedArrivals
    on_progress: OnProgress
    on_done: OnDone
    num_not_expecting: int
    """How many ranks do not expect it yet."""
    is_unwanted: bool = False
    """True once it is aborted: nobody is told anything of it."""
    is_expected: threading.Event = field(default_factory=threading.Event)
    is_over: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Sending:
    send: MergedSend
    on_done: OnDone


class ParallelTransport:
    """A `Transport` for all ranks of a node. It tells rank 0's own transport directly and the
    others through `tell`, in the same order; what they say comes to `report`, on any thread.

    One lock is held for every command and every callback: so commands have one order, and after
    `abort` nobody is told anything. What ranks report is merged on a thread of its own.
    """

    def __init__(
        self,
        own: Transport,
        tell: Callable[[TransportCommand], None],
        addresses: Sequence[str],
        layout: KVLayout,
    ) -> None:
        """`tell` sends a command to every other rank. `addresses` are those of all ranks, and
        `layout` that of the whole model."""
        self.address = own.address
        self._num_ranks = len(addresses)
        self._layout = layout
        self._tell_others = tell
        self._reports: queue.SimpleQueue[tuple[int, TransportReport] | str] = queue.SimpleQueue()
        """A sentence is the end of all."""
        self._own = RankTransport(own, lambda report: self.report(0, report))
        self._number = 0
        self._is_lost = False
        self._lock = threading.Lock()
        self._expected: dict[int, _Expected] = {}
        self._sending: dict[int, _Sending] = {}
        self._links: dict[int, list[LinkStats]] = {}
        self._thread = threading.Thread(target=self._merge, name="rank-reports", daemon=True)
        self._thread.start()

    def report(self, rank: int, report: TransportReport) -> None:
        """Queues what a rank says, for the thread that merges it with what other ranks say. Does
        not wait."""
        self._reports.put((rank, report))

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None:
        """Expects a transfer on every rank. Returns when all of them expect it: one that is still
        in a step would drop what comes at once. Raises RankLost."""
        with self._lock:
            arrivals = MergedArrivals(len(pages), self._num_ranks)
            number = self._next_number()
            expected = _Expected(transfer, arrivals, on_progress, on_done, self._num_ranks)
            self._expected[number] = expected
            self._tell(ExpectCommand(number, transfer, list(pages)))
            if self._is_lost:
                return
        if not expected.is_expected.wait(PATIENCE_S):
            raise RankLost(f"a rank did not expect {transfer} within {PATIENCE_S:g} s")

    def abort(self, transfer: Attempt) -> None:
        """Aborts a transfer on every rank and waits for them: one that is in a step answers after
        it. Raises RankLost."""
        with self._lock:
            if self._is_lost:  # what was expected before is over, what came later nobody was told
                return
            lives = [(n, e) for n, e in self._expected.items() if e.transfer == transfer]
            for number, expected in lives:
                expected.is_unwanted = True
                self._tell(AbortCommand(number, transfer))
        for _, expected in lives:
            if not expected.is_over.wait(PATIENCE_S):
                raise RankLost(f"a rank did not give up {transfer} within {PATIENCE_S:g} s")

    def send(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        self._begin("send", peer, transfer, pages, offset, on_done)

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> PageStream:
        number = self._begin("stream", peer, transfer, pages, offset, on_done)
        return _ParallelStream(number, self._own, self._finish)

    def cancel(self, transfer: Attempt) -> None:
        with self._lock:
            self._tell(CancelCommand(transfer))

    def links(self) -> list[LinkStats]:
        """Returns the links of all ranks, merged into one per peer and direction.

        Other ranks tell theirs now and then: what is known of them may be a moment old.
        """
        self._links[0] = self._own.look_at_links().stats
        num_heads = self._layout.num_kv_heads
        kept = sum(len(Shard(r, self._num_ranks).heads(num_heads)) for r in range(self._num_ranks))
        page_bytes = self._layout.page_bytes
        return merge_links(
            [self._links.get(rank, []) for rank in range(self._num_ranks)],
            page_bytes,
            page_bytes // num_heads * kept,
        )

    def lose(self, reason: str) -> None:
        """Notes that a rank is gone and this node ends, so that nobody waits for it any more."""
        self._reports.put(reason)

    def close(self) -> None:
        """Closes rank 0's transport. The other ranks close their own, and nothing they say is
        heard."""
        self._own.close()
        self._reports.put("the transport was closed")
        self._thread.join()

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _begin(
        self,
        kind: Literal["send", "stream"],
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> int:
        with self._lock:
            number = self._next_number()
            self._sending[number] = _Sending(MergedSend(self._num_ranks), on_done)
            self._tell(SendCommand(kind, number, list(peer), transfer, list(pages), offset))
        return number

    def _finish(self, number: int) -> None:
        with self._lock:
            self._tell(FinishStreamCommand(number))

    def _tell(self, command: TransportCommand) -> None:
        if not self._is_lost:
            self._tell_others(command)  # first: they have the longer way
            self._own.do(command)

    def _merge(self) -> None:
        while not isinstance(item := self._reports.get(), str):
            with self._lock:
                self._take(*item)
        with self._lock:
            self._end_all(item)

    def _end_all(self, reason: str) -> None:
        self._is_lost = True
        for sending in self._sending.values():
            sending.on_done(reason)
        for expected in self._expected.values():
            expected.is_expected.set()
            expected.is_over.set()
            if not expected.is_unwanted:
                expected.on_done(reason)
        self._sending.clear()
        self._expected.clear()

    def _take(self, rank: int, report: TransportReport) -> None:
        if isinstance(report, Links):
            self._links[rank] = report.stats
        elif isinstance(report, Sent):
            self._sent(rank, report)
        elif report.number in self._expected:  # else it is over: an end and an abort have crossed
            expected = self._expected[report.number]
            if isinstance(report, Expecting):
                expected.num_not_expecting -= 1
                if expected.num_not_expecting == 0:
                    expected.is_expected.set()
                return
            self._take_arrival(rank, report, expected)
            if expected.arrivals.is_over:
                del self._expected[report.number]
                # A transfer that ends before all ranks expect it must free `expect`, too.
                expected.is_expected.set()
                expected.is_over.set()
                if not expected.is_unwanted:
                    expected.on_done(expected.arrivals.error)

    def _take_arrival(
        self, rank: int, report: Arrived | Received | Aborted, expected: _Expected
    ) -> None:
        arrivals = expected.arrivals
        if isinstance(report, Aborted):
            arrivals.aborted(rank)
            return
        if isinstance(report, Arrived):
            news = arrivals.arrived(rank, report.num_pages)
        else:
            was_well = not arrivals.error
            news = arrivals.ended(rank, report.error)
            # The transfer has failed as a whole, so the other ranks need not wait for their parts.
            if report.error and was_well and not expected.is_unwanted:
                self._tell(AbortCommand(report.number, expected.transfer))
        if news and not expected.is_unwanted:
            expected.on_progress(news)

    def _sent(self, rank: int, report: Sent) -> None:
        sending = self._sending[report.number]
        sending.send.ended(rank, report.error)
        if sending.send.is_over:
            del self._sending[report.number]
            sending.on_done(sending.send.error)


@dataclass(frozen=True)
class _ParallelStream:
    """A stream of pages from all ranks. Other ranks tell their own part of it of layers, in their
    steps."""

    number: int
    own: RankTransport
    on_finish: Callable[[int], None]

    def layers_ready(self, num_layers: int) -> None:
        self.own.stream_layers_ready(self.number, num_layers)

    def finish(self) -> None:
        self.on_finish(self.number)

"""`Workers`: rank 0's view of the other ranks' processes. It starts, tells, hears and ends them."""

from __future__ import annotations

import logging
import multiprocessing
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import TypeVar

import torch

from node.config import NodeConfig
from node.ranks.wire import commands
from node.ranks.wire.pipe import Pipe, RankLost
from node.ranks.worker import WorkerPlan, run_worker
from protocol.ids import Node

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 3600.0
"""How long a rank may load weights. Its death is noticed at once; this is for one that hangs."""
SAME_FAILURE_S = 5.0
"""How long to wait, after a step failed here, for the other ranks to meet the same error: if they
have not by then, they are stuck."""
EXIT_TIMEOUT_S = 3.0
"""How long the other ranks have to end before they are killed. It is less than `grace.GRACE_S`, in
which this process has to do that if the node was lost."""
R = TypeVar("R", commands.PagesFit, commands.Ready)


@dataclass(frozen=True)
class WorkerHandle:
    """One worker process, as rank 0 sees it."""

    rank: int
    process: BaseProcess
    pipe: Pipe[commands.AnyReport]
    started: deque[commands.PagesFit | commands.Ready] = field(default_factory=deque)
    """What the worker has said while it starts, and nobody has asked for yet."""

    def death(self) -> str:
        """Returns how the process has ended, as a part of a sentence; waits a second for that."""
        self.process.join(1.0)
        return f"its exit code is {self.process.exitcode}"


class Workers:
    """The processes of the other ranks. If one of them is lost, at any time, this node ends: the
    functions given to `when_lost` are called.

    `agree` and `addresses` are for the start, while all ranks build themselves. One thread calls
    `tell` and the like, but transport commands may come from a second one.
    """

    def __init__(self, node: Node, workers: Sequence[WorkerHandle]) -> None:
        self._node = node
        self._workers = workers
        self._on_report: Callable[[int, commands.TransportReport], None] = lambda *_: None
        self._is_closing = False
        self._changed = threading.Condition()
        """Is notified when a worker has said something; guards the fields below."""
        self._lost = ""
        self._on_lost: list[Callable[[str], None]] = []
        self._failures: dict[int, dict[int, commands.ShareFailed]] = {}
        """What each rank said of a step that failed there: step → rank → report."""
        self._last_good_step = 0
        self._readers = [
            threading.Thread(target=self._read, args=(worker,), name=f"rank-{worker.rank}")
            for worker in workers
        ]
        for reader in self._readers:
            reader.daemon = True
            reader.start()

    @classmethod
    def start(
        cls,
        config: NodeConfig,
        node: Node,
        devices: Sequence[torch.device],
        meeting_address: str,
        health_address: str,
    ) -> Workers:
        """Starts a process for each rank but rank 0; they begin to load at once."""
        # Workers are forked from a process that has imported what they need and has no device.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([run_worker.__module__])
        workers = []
        for rank, device in enumerate(devices[1:], 1):
            here, there = socket.socketpair()
            plan = WorkerPlan(config, node, rank, str(device), meeting_address, health_address)
            process = context.Process(
                target=run_worker, args=(plan, there), name=f"{node.name} rank {rank}"
            )
            process.start()
            there.close()  # so that the end of the process ends the pipe
            log.info("rank %d of %s is process %s on %s", rank, node, process.pid, device)
            workers.append(WorkerHandle(rank, process, Pipe(here, commands.AnyReport)))
        return cls(node, workers)

    def agree(self, num_pages: int) -> int:
        """Returns the least number of KV pages that any rank has room for, and tells it to every
        rank.

        `num_pages` is rank 0's. Raises RankLost.
        """
        counts = [self._await(worker, commands.PagesFit).num_pages for worker in self._workers]
        agreed = min([num_pages, *counts])
        self.tell(commands.PoolPages(agreed))
        return agreed

    def addresses(self) -> list[str]:
        """Returns the workers' data addresses, in the order of ranks, when all are ready. Raises
        RankLost."""
        return [self._await(worker, commands.Ready).data_address for worker in self._workers]

    def listen(self, on_report: Callable[[int, commands.TransportReport], None]) -> None:
        """Passes what workers report of transfers on to `on_report` from now on, on some thread."""
        self._on_report = on_report

    def when_lost(self, do: Callable[[str], None]) -> None:
        """Registers a function that is called with the reason why this node cannot go on, once that
        is so."""
        with self._changed:
            self._on_lost.append(do)
            if self._lost:
                do(self._lost)

    def tell(self, command: commands.AnyCommand) -> None:
        """Sends a command to every worker. A worker that does not take it is lost, and this node
        with it."""
        for worker in self._workers:
            try:
                worker.pipe.send(command)
            except RankLost as error:
                self._lose(worker, error)

    def raise_if_lost(self) -> None:
        """Raises RankLost once a rank is lost."""
        if self._lost:
            raise RankLost(self._lost)

    def went_well_here(self, number: int) -> None:
        """Notes that rank 0's share of a step was computed, or given to its device."""
        with self._changed:
            self._last_good_step = number
            self._look_for_lonely_failures()

    def failed_here(self, number: int, num_operations: int, error: Exception) -> None:
        """Notes that rank 0's share of a step failed. Returns if every rank failed at the same
        collective operation; otherwise ends this node and raises RankLost."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._lost or len(self._failures.get(number, {})) == len(self._workers),
                SAME_FAILURE_S,
            )
            failures = self._failures.pop(number, {})
        stopped_at = {failure.num_operations for failure in failures.values()} | {num_operations}
        self.raise_if_lost()
        if len(failures) < len(self._workers) or stopped_at != {num_operations} or -1 in stopped_at:
            reason = (
                f"a step failed on rank 0 ({type(error).__name__}: {error}), and not in the same "
                "way on the other ranks: they do not fit together any more"
            )
            self._end_node(reason)
            raise RankLost(self._lost) from error

    def close(self) -> None:
        """Ends every worker; one that does not end in time is killed."""
        self._is_closing = True
        for worker in self._workers:
            worker.pipe.close()
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                log.warning("rank %d does not end and is killed", worker.rank)
                worker.process.kill()
                worker.process.join()
        for reader in self._readers:
            reader.join()

    def _await(self, worker: WorkerHandle, kind: type[R]) -> R:
        """Waits for what the worker says next while it starts, and returns it. Raises RankLost."""
        with self._changed:
            self._changed.wait_for(lambda: worker.started or self._lost, LOAD_TIMEOUT_S)
            self.raise_if_lost()
            if not worker.started:
                raise RankLost(f"rank {worker.rank} did not start within {LOAD_TIMEOUT_S:g} s")
            report = worker.started.popleft()
        assert isinstance(report, kind)
        return report

    def _read(self, worker: WorkerHandle) -> None:
        while True:
            try:
                report = worker.pipe.receive()
            except RankLost as error:
                self._lose(worker, error)
                return
            with self._changed:
                self._take(worker, report)
                self._changed.notify_all()

    def _take(self, worker: WorkerHandle, report: commands.AnyReport) -> None:
        if isinstance(report, commands.StartFailed):
            self._end_node(f"rank {worker.rank}: {report.reason}")
        elif isinstance(report, commands.PagesFit | commands.Ready):
            worker.started.append(report)
        elif isinstance(report, commands.ShareFailed):
            self._failures.setdefault(report.number, {})[worker.rank] = report
            self._look_for_lonely_failures()
        else:
            self._on_report(worker.rank, report)

    def _look_for_lonely_failures(self) -> None:
        for number, failures in self._failures.items():
            if number <= self._last_good_step:
                rank, failure = next(iter(failures.items()))
                self._end_node(f"a step failed on rank {rank} alone ({failure.error})")
                return

    def _lose(self, worker: WorkerHandle, error: RankLost) -> None:
        if not self._is_closing:
            which = f"rank {worker.rank} of {len(self._workers) + 1}"
            self._end_node(f"{which} is lost: {error}, {worker.death()}")

    def _end_node(self, reason: str) -> None:
        with self._changed:
            if self._lost:
                return
            self._lost = f"{self._node.name} cannot go on and ends: {reason}"
            log.error("%s", self._lost)
            self._changed.notify_all()
            for do in self._on_lost:
                do(self._lost)

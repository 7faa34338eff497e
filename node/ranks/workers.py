"""`Workers`: rank 0's view of the other ranks' processes. It starts, tells, hears and ends them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

import torch

from node.config import NodeConfig
from node.ranks import commands
from node.ranks.pipe import Pipe, RankLost
from node.ranks.worker import GRACE_S, WorkerPlan, run_worker
from protocol.ids import Node

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 3600.0
"""For the weights of a rank. Its death is noticed at once; this is for one that hangs."""
SAME_FAILURE_S = 5.0
"""After a step failed here: the others have met the same error by then, or are stuck in it."""
EXIT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _Worker:
    rank: int
    process: BaseProcess
    pipe: Pipe[commands.AnyReport]

    def death(self) -> str:
        self.process.join(1.0)
        return f"its exit code is {self.process.exitcode}"


class Workers:
    """`start`, then `agree` and `addresses` while all ranks build themselves, then `watch`. One
    thread calls `tell` and the like, but transport commands may come from a second one."""

    def __init__(self, node: Node, workers: Sequence[_Worker]) -> None:
        self._node = node
        self._workers = workers
        self._lost = ""
        self._on_lost: Callable[[str], None] = lambda _: None
        self._on_report: Callable[[int, commands.TransportReport], None] = lambda *_: None
        self._is_closing = False
        self._changed = threading.Condition()
        """Of `_lost`, and of what follows."""
        self._failures: dict[int, dict[int, commands.StepFailed]] = {}
        """Step → rank → what it said."""
        self._last_good_step = 0
        self._readers: list[threading.Thread] = []

    @classmethod
    def start(
        cls,
        config: NodeConfig,
        node: Node,
        devices: Sequence[torch.device],
        meeting_address: str,
    ) -> Workers:
        """One process per rank but rank 0; they begin to load at once."""
        # Workers are forked from a process that has imported what they need and has no device.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([run_worker.__module__])
        workers = []
        for rank, device in enumerate(devices[1:], 1):
            here, there = socket.socketpair()
            plan = WorkerPlan(config, node, rank, str(device), meeting_address)
            process = context.Process(
                target=run_worker, args=(plan, there), name=f"{node.name} rank {rank}"
            )
            process.start()
            there.close()  # so that the end of the process ends the pipe
            log.info("rank %d of %s is process %s on %s", rank, node, process.pid, device)
            workers.append(_Worker(rank, process, Pipe(here, commands.AnyReport)))
        return cls(node, workers)

    def agree(self, num_pages: int) -> int:
        """The least number of KV pages that a rank has room for; `num_pages` is rank 0's.

        Raises RankLost, as `addresses`.
        """
        counts = [self._await(worker, commands.PagesFit).num_pages for worker in self._workers]
        agreed = min([num_pages, *counts])
        self.tell(commands.PoolPages(agreed))
        return agreed

    def addresses(self) -> list[str]:
        """Data addresses, in order, when every worker is ready."""
        return [self._await(worker, commands.Ready).data_address for worker in self._workers]

    def watch(
        self,
        on_report: Callable[[int, commands.TransportReport], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """From now on each report is passed on, on some thread; `on_lost` is told once if this
        node cannot go on. If the process does not end soon after that, it is ended."""
        self._on_report, self._on_lost = on_report, on_lost
        for worker in self._workers:
            reader = threading.Thread(
                target=self._read, args=(worker,), name=f"rank-{worker.rank}", daemon=True
            )
            self._readers.append(reader)
            reader.start()

    def tell(self, command: commands.AnyCommand) -> None:
        """Every worker. One that does not take it is lost, and this node with it."""
        for worker in self._workers:
            try:
                worker.pipe.send(command)
            except RankLost as error:
                self._lose(worker, f"{error}, {worker.death()}")

    @property
    def lost(self) -> str:
        """Why this node cannot go on; "" if it can."""
        return self._lost

    def raise_if_lost(self) -> None:
        """Raises RankLost."""
        if self._lost:
            raise RankLost(self._lost)

    def went_well_here(self, number: int) -> None:
        """Rank 0's share of a step was computed, or given to its device."""
        with self._changed:
            self._last_good_step = number
            self._look_for_lonely_failures()

    def failed_here(self, number: int, num_operations: int, error: Exception) -> None:
        """Rank 0's share of a step failed. Returns if every rank failed at the same collective
        operation; else this node ends, and it raises RankLost."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._lost or len(self._failures.get(number, {})) == len(self._workers),
                SAME_FAILURE_S,
            )
            failures = self._failures.pop(number, {})
        stopped_at = {failure.num_operations for failure in failures.values()} | {num_operations}
        if self._lost:
            raise RankLost(self._lost) from error
        if len(failures) < len(self._workers) or stopped_at != {num_operations} or -1 in stopped_at:
            reason = (
                f"a step failed on rank 0 ({type(error).__name__}: {error}), and not in the same "
                "way on the other ranks: they do not fit together any more"
            )
            self._end_node(reason)
            raise RankLost(self._lost) from error

    def close(self) -> None:
        """Ends every worker, those that do not want to as well."""
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

    def _await(self, worker: _Worker, kind: type[commands.R]) -> commands.R:
        """Its next report."""
        try:
            report = worker.pipe.receive(LOAD_TIMEOUT_S)
        except RankLost as error:
            raise RankLost(
                f"rank {worker.rank} of {self._node.name} did not start: {error}, "
                f"{worker.death()}; its log lines above say more"
            ) from error
        if isinstance(report, commands.StartFailed):
            raise RankLost(f"rank {worker.rank} of {self._node.name}: {report.reason}")
        assert isinstance(report, kind)
        return report

    def _read(self, worker: _Worker) -> None:
        while True:
            try:
                report = worker.pipe.receive()
            except RankLost as error:
                self._lose(worker, f"{error}, {worker.death()}")
                return
            if isinstance(report, commands.StepFailed):
                with self._changed:
                    self._failures.setdefault(report.number, {})[worker.rank] = report
                    self._changed.notify_all()
                    self._look_for_lonely_failures()
            else:
                assert not isinstance(
                    report, commands.PagesFit | commands.Ready | commands.StartFailed
                )
                self._on_report(worker.rank, report)

    def _look_for_lonely_failures(self) -> None:
        for number, failures in self._failures.items():
            if number <= self._last_good_step:
                rank, failure = next(iter(failures.items()))
                self._end_node(f"a step failed on rank {rank} alone ({failure.error})")
                return

    def _lose(self, worker: _Worker, how: str) -> None:
        if not self._is_closing:
            self._end_node(f"rank {worker.rank} of {len(self._workers) + 1} is lost: {how}")

    def _end_node(self, reason: str) -> None:
        with self._changed:
            if self._lost:
                return
            self._lost = f"{self._node.name} cannot go on and ends: {reason}"
            self._changed.notify_all()
        log.error("%s", self._lost)
        threading.Thread(target=_exit_after_grace, name="grace", daemon=True).start()
        self._on_lost(self._lost)


def _exit_after_grace() -> None:
    """A collective operation may wait for a lost rank for long, on a GPU forever."""
    time.sleep(GRACE_S)
    log.error("the node does not end by itself; it is ended")
    os._exit(1)

"""The process of a rank that does not schedule: does what rank 0 tells it, in that order."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass

import torch

from engine.batches.sequence import Slice
from engine.errors import DeviceBroken
from engine.parallel import connect
from engine.steps.runner import ModelRunner
from node.config import NodeConfig
from node.ranks.executor import RankTransport
from node.ranks.grace import exit_at_last
from node.ranks.history import StepHistory
from node.ranks.operations import Operations
from node.ranks.rank import Rank, build_rank
from node.ranks.wire import commands
from node.ranks.wire.pipe import Pipe, RankLost
from node.ranks.wire.slices import SliceDecoder
from node.resources import leave_garbage_be
from protocol.errors import UserError
from protocol.ids import Node
from protocol.telemetry.logs import start_logging
from protocol.trust.refusals import Refusals

log = logging.getLogger(__name__)

MEETING_TIMEOUT_S = 60.0
"""How long the ranks wait to meet, and then in each of their collective operations over gloo."""
LINKS_INTERVAL_S = 0.2


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker process is told when it starts."""

    config: NodeConfig
    node: Node
    rank: int
    device: str
    meeting_address: str
    health_address: str


def run_worker(plan: WorkerPlan, connection: socket.socket) -> None:
    """Runs a worker process until rank 0 closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the node: rank 0 ends this process
    config = plan.config
    start_logging(config.log_level, config.log_format, f"rank {plan.rank}")
    threading.Thread(target=_end_with_rank_0, name="parent", daemon=True).start()
    torch.set_num_threads(plan.config.cpu_threads)
    pipe: Pipe[commands.AnyCommand] = Pipe(connection, commands.AnyCommand)
    operations = Operations()
    try:
        rank = _build(plan, pipe, operations)
    except UserError as error:
        _tell(pipe, commands.StartFailed(str(error)))
        sys.exit(1)
    transport = RankTransport(rank.transport, lambda report: _tell(pipe, report))
    _tell(pipe, commands.Ready(rank.transport.address))
    _LinkReports(transport, pipe).start()
    leave_garbage_be()
    try:
        Worker(rank.runner, transport, pipe, operations).run()
    except RankLost:
        pass  # rank 0 has ended, or is ending, this node
    finally:
        exit_at_last()
        transport.close()


def _build(plan: WorkerPlan, pipe: Pipe[commands.AnyCommand], operations: Operations) -> Rank:
    def agree(num_pages: int) -> int:
        pipe.send(commands.PagesFit(num_pages))
        answer = pipe.receive()
        assert isinstance(answer, commands.PoolPages)
        return answer.num_pages

    device = torch.device(plan.device)
    size = plan.config.tensor_parallel_size
    parallel = connect(plan.rank, size, device, plan.meeting_address, MEETING_TIMEOUT_S)
    parallel = operations.counted(parallel)
    # What is refused here is only told in the log.
    return build_rank(
        plan.config, plan.node, device, parallel, agree, plan.health_address, Refusals()
    )


class Worker:
    """Carries out the commands that come through the pipe, on this rank's runner and transport."""

    def __init__(
        self,
        runner: ModelRunner,
        transport: RankTransport,
        pipe: Pipe[commands.AnyCommand],
        operations: Operations,
    ) -> None:
        self._runner = runner
        self._transport = transport
        self._pipe = pipe
        self._operations = operations
        self._decoder = SliceDecoder()
        self._history = StepHistory()

    def run(self) -> None:
        """Carries out commands until rank 0 closes the pipe, which raises RankLost. Raises
        DeviceBroken."""
        while True:
            command = self._pipe.receive()
            if isinstance(command, commands.StepCommand):
                self._step(command)
            elif isinstance(command, commands.EndSequenceCommand):
                self._decoder.end_sequence(command.sequence_id)
                self._runner.end_sequence(command.sequence_id)
            elif isinstance(command, commands.CopyCommand):
                self._runner.copy_pages(command.sources, command.destinations)
            else:
                assert not isinstance(command, commands.PoolPages), "the pool is there"
                self._transport.do(command)

    def _step(self, command: commands.StepCommand) -> None:
        slices = self._decoder.decode(command.slices)
        try:
            self._start(command, slices)
        except DeviceBroken:
            raise
        except Exception as error:
            log.exception("a step of %d sequences failed", len(slices))
            reason = f"{type(error).__name__}: {error}"
            self._pipe.send(
                commands.ShareFailed(command.number, self._operations.num_begun, reason)
            )

    def _start(self, command: commands.StepCommand, slices: list[Slice]) -> None:
        on_layer = self._transport.layers_ready if command.feeds_streams else None
        after = self._history.follow(command.after)
        self._history.add(command.number, self._runner.start(slices, on_layer, after))


class _LinkReports:
    """Reports this rank's links to rank 0 now and then, if they have changed."""

    def __init__(self, transport: RankTransport, pipe: Pipe[commands.AnyCommand]) -> None:
        self._transport = transport
        self._pipe = pipe

    def start(self) -> None:
        threading.Thread(target=self._run, name="links", daemon=True).start()

    def _run(self) -> None:
        told = commands.Links([])
        while True:
            time.sleep(LINKS_INTERVAL_S)
            links = self._transport.look_at_links()
            if links != told:
                told = links
                _tell(self._pipe, links)


def _tell(pipe: Pipe[commands.AnyCommand], report: commands.AnyReport) -> None:
    """Sends a report to rank 0. It is called on threads of the transport too, which outlive rank 0
    for a moment."""
    try:
        pipe.send(report)
    except RankLost:
        pass  # who receives next notices it as well


def _end_with_rank_0() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    exit_at_last()

"""The ranks of a tensor-parallel model as processes of this host, which measure it together.

Each form of the weights gets new processes: nothing is left of the one before, and one that fails
leaves the figures of the others.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from benchmarks.engines.shapes import save_shape
from benchmarks.gpu.plan import GpuPlan
from benchmarks.gpu.rank_report import RanksReport
from benchmarks.gpu.rank_steps import RankFigures, RankTask, measure_rank
from benchmarks.machine import cards, machine, versions_of
from engine.options import EngineOptions
from engine.parallel import MeetingPoint, connect
from protocol.errors import UserError

HOST = "127.0.0.1"
TIMEOUT_S = 300.0
"""How long one form of the weights may take, from the start of its processes on."""


class RanksFailed(UserError):
    """The ranks measured nothing; the message says which of them failed, and how."""


def measure_each_form(
    shape: str,
    options: EngineOptions,
    names: Sequence[str],
    plan: GpuPlan,
    chunk_tokens: int,
    devices: Sequence[torch.device],
    num_threads: int,
) -> RanksReport:
    """Measures `shape` with each `--quantization` of `names`, a rank on each of the `devices`. One
    that fails is told on standard error. Raises RanksFailed if all do."""
    figures: dict[str, RankFigures] = {}
    with tempfile.TemporaryDirectory() as directory:
        save_shape(shape, Path(directory))
        for name in names:
            form = dataclasses.replace(options, quantization=name)
            task = RankTask(Path(directory), form, plan, chunk_tokens)
            try:
                figures[name] = measure_ranks(task, devices, num_threads)
            except RanksFailed as error:
                print(f"--quantization {name} was not measured: {error}", file=sys.stderr)
    if not figures:
        raise RanksFailed("nothing was measured; standard error says why")
    notes = {
        "machine": machine("torch") | versions_of("triton") | {"gpus": cards()},
        "shape": shape,
        "dtype": options.dtype,
        "num_ranks": len(devices),
        "chunk_tokens": chunk_tokens,
    }
    return RanksReport(figures, notes)


def measure_ranks(
    task: RankTask, devices: Sequence[torch.device], num_threads: int, timeout_s: float = TIMEOUT_S
) -> RankFigures:
    """Returns what rank 0 of as many ranks as there are `devices` measured. No process is left
    behind. Raises RanksFailed."""
    meeting_point = MeetingPoint(HOST, timeout_s)
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    ranks: dict[Connection, BaseProcess] = {}
    try:
        for rank, device in enumerate(devices):
            ours, theirs = context.Pipe(duplex=False)
            place = rank, len(devices), str(device), meeting_point.address, timeout_s
            process: BaseProcess = context.Process(
                target=_run, args=(task, place, num_threads, theirs), name=f"rank {rank}"
            )
            process.start()
            theirs.close()  # so that the end of the process ends the pipe
            ranks[ours] = process
        return _figures(ranks, timeout_s)
    finally:
        for process in ranks.values():
            process.kill()  # the end of a group of NCCL may wait for ranks that are gone
            process.join()


def _figures(ranks: Mapping[Connection, BaseProcess], timeout_s: float) -> RankFigures:
    """Returns what the first rank tells, as soon as it does. Raises RanksFailed when any rank ends
    or fails before that."""
    first = next(iter(ranks))
    waiting, deadline = set(ranks), time.monotonic() + timeout_s
    while ready := wait(waiting, max(0.0, deadline - time.monotonic())):
        for pipe in ready:
            assert isinstance(pipe, Connection)
            told = _told(pipe, ranks[pipe])
            if pipe is first:
                return told
            waiting.discard(pipe)
    raise RanksFailed(f"{len(ranks)} ranks did not measure everything within {timeout_s:g} s")


def _told(pipe: Connection, process: BaseProcess) -> RankFigures:
    try:
        told: RankFigures | str = pipe.recv()
    except EOFError:
        process.join(1.0)
        told = f"it ended with exit code {process.exitcode}"
    if isinstance(told, str):
        raise RanksFailed(f"{process.name} failed: {told}")
    return told


def _run(
    task: RankTask,
    place: tuple[int, int, str, str, float],
    num_threads: int,
    pipe: Connection,
) -> None:
    """Measures one rank in its own process, and tells its figures or what went wrong."""
    rank, size, device_name, address, timeout_s = place
    torch.set_num_threads(num_threads)
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        parallel = connect(rank, size, device, address, timeout_s)
        pipe.send(measure_rank(task, device, parallel))
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")
    pipe.close()
    # Other ranks may still compute the last step, which needs this one: it waits to be killed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join(timeout_s)

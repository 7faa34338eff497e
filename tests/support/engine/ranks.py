"""The ranks of one model as threads of this process, which sum and gather as process groups do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import AllreduceOptions, ReduceOp

from engine.parallel import TensorParallel

T = TypeVar("T")
DEADLINE_S = 60.0


class _Meeting:
    """Where all ranks bring a tensor and take away those of all."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=DEADLINE_S)
        self._brought: list[Tensor] = [torch.empty(0)] * size

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        self._brought[rank] = tensor.clone()
        self._barrier.wait()
        brought = list(self._brought)
        self._barrier.wait()
        return brought

    def abort(self) -> None:
        self._barrier.abort()


class ThreadGroup:
    """What `TensorParallel` asks of a process group."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self._rank, self._meeting = rank, meeting

    def allreduce(
        self, tensors: Sequence[Tensor], options: AllreduceOptions | None = None
    ) -> ThreadGroup:
        """Sums, or takes the largest if the options say so."""
        brought = torch.stack(self._meeting.exchange(self._rank, tensors[0]))
        is_sum = options is None or options.reduceOp == ReduceOp.SUM
        tensors[0].copy_(brought.sum(0) if is_sum else brought.amax(0))
        return self

    def allgather(self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor]) -> Any:
        brought = self._meeting.exchange(self._rank, inputs[0])
        for output, of_rank in zip(outputs[0], brought, strict=True):
            output.copy_(of_rank)
        return self

    def wait(self) -> None:
        pass


def on_ranks(size: int, work: Callable[[TensorParallel], T]) -> list[T]:
    """Returns what `work` returns on each of `size` ranks, which compute side by side."""
    meeting = _Meeting(size)

    def of_rank(rank: int) -> T:
        try:
            return work(TensorParallel(rank, size, ThreadGroup(rank, meeting)))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(of_rank, range(size)))

"""Tensor parallelism: the group of ranks that compute one model together.

Every rank runs the same steps on the same slices, holds its share of each weight and of the KV
heads, and ends with the same logits. Knows no weights; `engine/model/linear.py` has what is split.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import (
    AllreduceOptions,
    PrefixStore,
    ProcessGroupGloo,
    ReduceOp,
    TCPStore,
)


@dataclass(frozen=True)
class TensorParallel:
    """Says that this process is `rank` of `size`, and reaches the others through `group`.

    `group` is one of torch's process groups, or None where there is one rank.
    """

    rank: int
    size: int
    group: Any = None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Writes the sum over all ranks into `tensor`. Raises RuntimeError if a rank is lost."""
        if self.size > 1:
            self.group.allreduce([tensor]).wait()
        return tensor

    def all_max(self, tensor: Tensor) -> Tensor:
        """Writes the largest of all ranks into `tensor`, place by place. Raises RuntimeError if a
        rank is lost."""
        if self.size > 1:
            options = AllreduceOptions()
            options.reduceOp = ReduceOp(ReduceOp.MAX)
            self.group.allreduce([tensor], options).wait()
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Joins the ranks' [..., n] to [..., size * n], in the order of ranks.

        Raises RuntimeError if a rank is lost.
        """
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self.group.allgather([parts], [tensor.contiguous()]).wait()
        return torch.cat(parts, dim=-1)


SOLO = TensorParallel(0, 1)


class MeetingPoint:
    """The store through which the ranks of one model find each other.

    Rank 0's process opens it before the other ranks are started and tells them its address. The
    store listens on `host` alone, on a port that the system chose; it must stay referenced for as
    long as the ranks compute, because NCCL goes on using it.
    """

    def __init__(self, host: str, timeout_s: float) -> None:
        # A store that binds for itself would listen on every address of this machine.
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self.address = f"{host}:{port}"
        self._store = TCPStore(
            host,
            port,
            is_master=True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )


def connect(
    rank: int, size: int, device: torch.device, address: str, timeout_s: float
) -> TensorParallel:
    """Joins the other ranks at the `MeetingPoint` of this address ("host:port").

    The ranks talk over NCCL on CUDA and over gloo elsewhere; torch's default group is left alone.
    `timeout_s` bounds the meeting and, over gloo, each operation. Raises RuntimeError if the ranks
    do not meet.
    """
    if size == 1:
        return SOLO
    host, _, port = address.rpartition(":")
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
    ranks = PrefixStore("tensor-parallel", store)
    make = _nccl if device.type == "cuda" else _gloo
    return TensorParallel(rank, size, make(ranks, rank, size, device, timeout))


def _gloo(
    store: PrefixStore, rank: int, size: int, device: torch.device, timeout: timedelta
) -> Any:
    group: Any = ProcessGroupGloo(store, rank, size, timeout)
    # A rank that refuses its model at once, and goes, would else break the meeting of the others.
    group.allreduce([torch.zeros(1)]).wait()
    return group


def _nccl(
    store: PrefixStore, rank: int, size: int, device: torch.device, timeout: timedelta
) -> Any:
    from torch.distributed import ProcessGroupNCCL  # absent from CPU builds of torch

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    group = ProcessGroupNCCL(store, rank, size, options)
    group.eager_connect_single_device(device)
    return group

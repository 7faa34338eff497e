"""Tensor parallelism: the group of ranks that compute one model together.

Every rank runs the same steps on the same slices, holds its share of each weight and of the KV
heads, and ends with the same logits. Knows no weights; `engine/model/linear.py` has what is split.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore


@dataclass(frozen=True)
class TensorParallel:
    """This process is `rank` of `size`. `group` is torch's process group; None: alone."""

    rank: int
    size: int
    group: Any = None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, written into `tensor`. Raises RuntimeError if a rank is lost."""
        if self.size > 1:
            self.group.allreduce([tensor]).wait()
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[…, n] → […, size * n], rank after rank. Raises RuntimeError if a rank is lost."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self.group.allgather([parts], [tensor.contiguous()]).wait()
        return torch.cat(parts, dim=-1)


SOLO = TensorParallel(0, 1)


def connect(
    rank: int, size: int, device: torch.device, address: str, timeout_s: float
) -> TensorParallel:
    """Joins the other ranks at `address` ("host:port"), where rank 0 opens a store.

    NCCL on CUDA, else gloo; no default group is made. `timeout_s` bounds the meeting and, over
    gloo, each operation. Raises RuntimeError if the ranks do not meet.
    """
    if size == 1:
        return SOLO
    host, _, port = address.rpartition(":")
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(
        host, int(port), size, is_master=rank == 0, timeout=timeout, wait_for_workers=False
    )
    ranks = PrefixStore("tensor-parallel", store)
    make = _nccl if device.type == "cuda" else _gloo
    return TensorParallel(rank, size, make(ranks, rank, size, device, timeout))


def _gloo(
    store: PrefixStore, rank: int, size: int, device: torch.device, timeout: timedelta
) -> ProcessGroupGloo:
    return ProcessGroupGloo(store, rank, size, timeout)


def _nccl(
    store: PrefixStore, rank: int, size: int, device: torch.device, timeout: timedelta
) -> Any:
    from torch.distributed import ProcessGroupNCCL  # absent from CPU builds of torch

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    group = ProcessGroupNCCL(store, rank, size, options)
    group.eager_connect_single_device(device)
    return group

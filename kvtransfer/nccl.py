"""Pairs over NCCL, for two GPUs.

A two-rank group without a default group, no watchdog, our own deadline on a CUDA event, and `abort`
in a thread, after which CUDA and other pairs go on. `tests/gpu` has run on two H100s (torch 2.11,
NCCL 2.28.9), a killed and restarted peer included; two nodes cannot share one GPU.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Store

from kvtransfer.pair import RECEIVER_RANK, SENDER_RANK
from kvtransfer.transport import PeerLost

POLL_S = 0.0002


class NcclBackend:
    name = "nccl"

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        # The watchdog would end the process on a peer's death; our deadlines do its work.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        os.environ["TORCH_NCCL_ENABLE_MONITORING"] = "0"
        self.staging_device = device
        self._timeout_s = timeout_s

    def make_pair(self, store: Store, rank: int) -> NcclPair:
        from torch.distributed import ProcessGroupNCCL  # absent from CPU builds of torch

        options = ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=self._timeout_s)
        try:
            group = ProcessGroupNCCL(store, rank, 2, options)
            group.eager_connect_single_device(self.staging_device)
        except RuntimeError as error:
            raise PeerLost(f"no NCCL pair could be made ({error})") from error
        return NcclPair(group, self.staging_device, self._timeout_s)


class NcclPair:
    """Its own CUDA stream; a send or receive returns when the bytes have moved."""

    def __init__(self, group: Any, device: torch.device, timeout_s: float) -> None:
        self._group = group
        self._stream = torch.cuda.Stream(device)
        self._timeout_s = timeout_s

    def send(self, staging: Tensor) -> None:
        self._move(lambda: self._group.send([staging], RECEIVER_RANK, 0))

    def receive(self, staging: Tensor) -> None:
        self._move(lambda: self._group.recv([staging], SENDER_RANK, 0))

    def close(self) -> None:
        threading.Thread(target=self._group.abort, name="nccl-abort", daemon=True).start()

    def _move(self, operation: Callable[[], Any]) -> None:
        done = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            operation().wait()  # orders streams only
            done.record(self._stream)
        deadline = time.monotonic() + self._timeout_s
        while not done.query():
            if time.monotonic() > deadline:
                raise PeerLost(f"NCCL moved nothing for {self._timeout_s:g} s")
            time.sleep(POLL_S)

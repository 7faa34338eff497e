"""Pairs within one process, for tests: bytes pass through a bounded queue."""

from __future__ import annotations

import queue
import uuid

import torch
from torch import Tensor
from torch.distributed import Store

from kvtransfer.pair import RECEIVER_RANK
from kvtransfer.transport import PeerLost

QUEUED_FRAMES = 4


class LocalBackend:
    """Share one instance between the transports that shall reach one another."""

    name = "local"
    staging_device = torch.device("cpu")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._queues: dict[str, queue.Queue[Tensor]] = {}

    def make_pair(self, store: Store, rank: int) -> LocalPair:
        if rank == RECEIVER_RANK:
            name = uuid.uuid4().hex
            self._queues[name] = queue.Queue(QUEUED_FRAMES)
            store.set("queue", name)
        else:
            name = store.get("queue").decode()
        return LocalPair(self._queues[name], self._timeout_s)


class LocalPair:
    def __init__(self, frames: queue.Queue[Tensor], timeout_s: float) -> None:
        self._frames = frames
        self._timeout_s = timeout_s

    def send(self, staging: Tensor) -> None:
        try:
            self._frames.put(staging.clone(), timeout=self._timeout_s)
        except queue.Full as error:
            raise PeerLost(f"nobody received for {self._timeout_s:g} s") from error

    def receive(self, staging: Tensor) -> None:
        try:
            staging.copy_(self._frames.get(timeout=self._timeout_s))
        except queue.Empty as error:
            raise PeerLost(f"nothing arrived for {self._timeout_s:g} s") from error

    def close(self) -> None:
        """Nothing is held beside the queue."""

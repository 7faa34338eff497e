"""Pairs within one process, for tests. As over gloo, a send ends when its receive has the bytes."""

from __future__ import annotations

import queue
import threading
import uuid

import torch
from torch import Tensor
from torch.distributed import Store

from kvtransfer.pair import RECEIVER_RANK
from kvtransfer.transport import PeerLost


class _Frame:
    """Bytes on offer until `taken`."""

    def __init__(self, content: Tensor) -> None:
        self.content = content
        self.taken = threading.Event()


class LocalBackend:
    """Share one instance between the transports that shall reach one another."""

    name = "local"
    staging_device = torch.device("cpu")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._queues: dict[str, queue.Queue[_Frame]] = {}

    def make_pair(self, store: Store, rank: int) -> LocalPair:
        if rank == RECEIVER_RANK:
            name = uuid.uuid4().hex
            self._queues[name] = queue.Queue(maxsize=1)
            store.set("queue", name)
        else:
            name = store.get("queue").decode()
        return LocalPair(self._queues[name], self._timeout_s)


class LocalPair:
    def __init__(self, frames: queue.Queue[_Frame], timeout_s: float) -> None:
        self._frames = frames
        self._timeout_s = timeout_s

    def send(self, staging: Tensor) -> None:
        frame = _Frame(staging)
        self._frames.put(frame)  # never full: the one before was taken
        if not frame.taken.wait(self._timeout_s):
            raise PeerLost(f"nobody received for {self._timeout_s:g} s")

    def receive(self, staging: Tensor) -> None:
        try:
            frame = self._frames.get(timeout=self._timeout_s)
        except queue.Empty as error:
            raise PeerLost(f"nothing arrived for {self._timeout_s:g} s") from error
        staging.copy_(frame.content)
        frame.taken.set()

    def close(self) -> None:
        """Nothing is held beside the queue."""

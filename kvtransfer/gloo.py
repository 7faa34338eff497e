"""Pairs over gloo, for CPUs; also between GPUs, staged through host memory."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store

from kvtransfer.pair import RECEIVER_RANK, SENDER_RANK
from kvtransfer.ring import Ring
from kvtransfer.transport import PeerLost


class GlooBackend:
    """Short messages: one that is cut by the peer's death hangs to its timeout, and short ones
    rarely are. Several under way at once make up for it."""

    name = "gloo"
    staging_device = torch.device("cpu")
    message_bytes = 1 << 20
    window = 16
    min_send_bytes = 1 << 20

    def __init__(self, host: str, timeout_s: float) -> None:
        """`host`: this node's own address, where peers connect. One device serves all pairs."""
        self._device = ProcessGroupGloo.create_device(hostname=host)
        self._timeout = timedelta(seconds=timeout_s)

    def make_pair(self, store: Store, rank: int, window: int, buffer_bytes: int) -> GlooPair:
        options: Any = ProcessGroupGloo._Options()
        options._devices = [self._device]
        options._timeout = self._timeout
        try:
            group = ProcessGroupGloo(store, rank, 2, options)
        except RuntimeError as error:
            raise PeerLost(f"no gloo pair could be made ({error})") from error
        return GlooPair(group, self._timeout, Ring(window, buffer_bytes, self.staging_device))


class GlooPair:
    def __init__(self, group: ProcessGroupGloo, timeout: timedelta, ring: Ring) -> None:
        self._group = group
        self._timeout = timeout
        self._ring = ring
        self._reserved: Tensor | None = None
        self._under_way: deque[tuple[Any, Tensor]] = deque()

    def reserve(self, num_bytes: int) -> Tensor:
        self._reserved = self._ring.take(num_bytes)
        return self._reserved

    def send(self) -> None:
        buffer = self._reserved
        assert buffer is not None
        try:
            self._under_way.append((self._group.send([buffer], RECEIVER_RANK, 0), buffer))
        except RuntimeError as error:
            raise _lost(error) from error

    def sent(self) -> None:
        self._wait_for_oldest()

    def post(self, num_bytes: int) -> None:
        buffer = self._ring.take(num_bytes)
        try:
            self._under_way.append((self._group.recv([buffer], SENDER_RANK, 0), buffer))
        except RuntimeError as error:
            raise _lost(error) from error

    def received(self) -> Tensor:
        return self._wait_for_oldest()

    def release(self) -> None:
        """The ring's order says it."""

    def close(self) -> None:
        """gloo has no abort; the group is freed with its last reference."""

    def _wait_for_oldest(self) -> Tensor:
        work, buffer = self._under_way.popleft()
        try:
            work.wait(self._timeout)
        except RuntimeError as error:
            raise _lost(error) from error
        return buffer


def _lost(error: RuntimeError) -> PeerLost:
    return PeerLost(f"gloo lost the peer ({str(error).splitlines()[0]})")

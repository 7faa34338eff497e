"""Pairs over gloo, for CPUs; also between GPUs, staged through host memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo, Store

from kvtransfer.backends.group_pair import GroupPair
from kvtransfer.backends.ring import Ring
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


class GlooPair(GroupPair):
    def __init__(self, group: ProcessGroupGloo, timeout: timedelta, ring: Ring) -> None:
        super().__init__(group, ring)
        self._timeout = timeout

    def close(self) -> None:
        """gloo has no abort; the group is freed with its last reference."""

    def _wait(self, work: Any) -> None:
        work.wait(self._timeout)

"""Pairs over gloo, for CPUs; also between GPUs, staged through host memory."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store

from kvtransfer.layout import messages
from kvtransfer.pair import RECEIVER_RANK, SENDER_RANK
from kvtransfer.transport import PeerLost

MAX_MESSAGE_BYTES = 1 << 20
"""A message that is cut by the peer's death hangs to its timeout; short ones rarely are."""
WINDOW = 8
"""Messages under way at once."""


class GlooBackend:
    name = "gloo"
    staging_device = torch.device("cpu")

    def __init__(self, host: str, timeout_s: float) -> None:
        """`host`: this node's own address, where peers connect. One device serves all pairs."""
        self._device = ProcessGroupGloo.create_device(hostname=host)
        self._timeout = timedelta(seconds=timeout_s)

    def make_pair(self, store: Store, rank: int) -> GlooPair:
        options: Any = ProcessGroupGloo._Options()
        options._devices = [self._device]
        options._timeout = self._timeout
        try:
            group = ProcessGroupGloo(store, rank, 2, options)
        except RuntimeError as error:
            raise PeerLost(f"no gloo pair could be made ({error})") from error
        return GlooPair(group, self._timeout)


class GlooPair:
    def __init__(self, group: ProcessGroupGloo, timeout: timedelta) -> None:
        self._group = group
        self._timeout = timeout

    def send(self, staging: Tensor) -> None:
        self._move(staging, is_send=True)

    def receive(self, staging: Tensor) -> None:
        self._move(staging, is_send=False)

    def close(self) -> None:
        """gloo has no abort; the group is freed with its last reference."""

    def _move(self, staging: Tensor, is_send: bool) -> None:
        window: deque[Any] = deque()
        try:
            for part in messages(staging.numel(), MAX_MESSAGE_BYTES):
                if len(window) == WINDOW:
                    window.popleft().wait(self._timeout)
                if is_send:
                    window.append(self._group.send([staging[part]], RECEIVER_RANK, 0))
                else:
                    window.append(self._group.recv([staging[part]], SENDER_RANK, 0))
            while window:
                window.popleft().wait(self._timeout)
        except RuntimeError as error:
            raise PeerLost(f"gloo lost the peer ({str(error).splitlines()[0]})") from error

"""`Pair`: raw bytes between two ranks, and how a backend makes one."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import Store

SENDER_RANK, RECEIVER_RANK = 0, 1


class Pair(Protocol):
    """One direction: rank 0 sends, rank 1 receives, in the same order and sizes.

    Not usable after a PeerLost.
    """

    def send(self, staging: Tensor) -> None:
        """`staging` [bytes] uint8. Raises PeerLost within the backend's deadline."""

    def receive(self, staging: Tensor) -> None:
        """Fills `staging`; its size must equal the sender's. Raises PeerLost."""

    def close(self) -> None: ...


class PairBackend(Protocol):
    """Makes pairs. `staging_device` is where `send` and `receive` want their bytes."""

    name: str
    staging_device: torch.device

    def make_pair(self, store: Store, rank: int) -> Pair:
        """Both ranks call it at about the same time, with a store that is theirs alone.

        Raises PeerLost.
        """

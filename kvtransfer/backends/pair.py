"""`Pair`: messages from one rank to another through a ring of staging buffers, and how a backend
makes one."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import Store

SENDER_RANK, RECEIVER_RANK = 0, 1


class Pair(Protocol):
    """One direction: rank 0 sends, rank 1 receives, the same sizes in the same order.

        sender     reserve, fill, send ──►  …  sent          at most `window` messages
        receiver   post                ──►  received, empty, release     are under way

    A call that waits has the backend's deadline, and raises PeerLost; the pair is then over.
    Buffers are [bytes] uint8 on the backend's `staging_device`. One thread uses a pair; on CUDA its
    current stream fills and empties them.
    """

    def reserve(self, num_bytes: int) -> Tensor:
        """The sender's next buffer, to be filled."""

    def send(self) -> None:
        """Sends the buffer reserved last; returns at once."""

    def sent(self) -> None:
        """Waits for the end of the oldest message under way; its buffer is free again. The receiver
        need not have it: NCCL takes a short one whole."""

    def post(self, num_bytes: int) -> None:
        """Receives the next message; returns at once."""

    def received(self) -> Tensor:
        """Waits for the oldest posted message; its buffer is the caller's until `release`."""

    def release(self) -> None:
        """Gives back the buffer that `received` returned last."""

    def close(self) -> None: ...


class PairBackend(Protocol):
    """Makes pairs. `staging_device` is where their buffers are."""

    name: str
    staging_device: torch.device
    message_bytes: int
    """The best size of a message; a longer row is sent whole."""
    window: int
    """Messages under way at once."""
    min_send_bytes: int
    """What is worth a send: layers of a short chunk are sent together until they have so much."""

    def make_pair(self, store: Store, rank: int, window: int, buffer_bytes: int) -> Pair:
        """Both ranks call it at about the same time, with a store that is theirs alone.

        At most `window` messages are under way, of `buffer_bytes` or less. Raises PeerLost.
        """

"""`Pair` and `PairBackend`: the interface of what moves messages from one rank to another."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import Store

SENDER_RANK, RECEIVER_RANK = 0, 1
IsAlive = Callable[[], bool]
"""Tells whether a peer that has done nothing for a while is alive. Takes a second at most."""


class StreamStore(Store):
    """A store whose two ranks can also open a TCP connection of their own."""

    def open_stream(self) -> socket.socket:
        """Returns a connection to the other rank, which calls this too. Raises PeerLost."""
        raise NotImplementedError


class Pair(Protocol):
    """Moves messages in one direction through a ring of staging buffers at each end.

    Rank 0 sends and rank 1 receives. Both must name the same sizes in the same order.

        sender     reserve, fill, send ──►  …  sent          at most `window` messages
        receiver   post                ──►  received, empty, release     are under way

    A call that waits raises PeerLost after the backend's deadline, and the pair is then over. But a
    backend that can go on waiting asks first whether the peer is alive, and waits as long again.
    Buffers are [bytes] uint8 on the backend's `staging_device`. One thread uses a pair; on CUDA its
    current stream fills and empties them.
    """

    def reserve(self, num_bytes: int) -> Tensor:
        """Returns the sender's next buffer, to be filled."""

    def send(self) -> None:
        """Begins to send the buffer that was reserved last. Waits at most for room on the way."""

    def sent(self) -> None:
        """Waits until the oldest message has left its buffer, which is then free again. That is no
        proof that the receiver has it: NCCL takes a short message whole before it is received."""

    def post(self, num_bytes: int) -> None:
        """Begins to receive the next message, of exactly `num_bytes`. Does not wait."""

    def received(self) -> Tensor:
        """Waits for the oldest posted message and returns its buffer, which is the caller's until
        `release`."""

    def release(self) -> None:
        """Gives back the buffer that `received` returned last."""

    def close(self) -> None:
        """Gives up the pair with all that is under way. Does not wait."""


class PairBackend(Protocol):
    """Makes pairs over one way to move bytes, such as gloo."""

    name: str
    staging_device: torch.device
    """Where the staging buffers of its pairs are."""
    message_bytes: int
    """The best size of a message. A row that is longer is one message all the same."""
    window: int
    """How many messages are under way at once."""
    min_send_bytes: int
    """The layers of a short chunk are gathered until they have this much: less is not worth the
    cost of a send."""

    def make_pair(
        self, store: Store, rank: int, window: int, buffer_bytes: int, is_peer_alive: IsAlive
    ) -> Pair:
        """Makes one end of a pair. Raises PeerLost, within the deadline of `store`.

        Both ranks call this at about the same time, each with its end of a `store` that no other
        pair uses. At most `window` messages are under way, of at most `buffer_bytes` each.
        """

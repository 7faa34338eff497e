"""`GlooBackend`: pairs over gloo, between any two nodes. Pages of a GPU are staged in host memory.

What is known of gloo, all of it measured: a message that is cut by the peer's death may hang until
its timeout, whatever else happens to the pair; a message longer than the posted receive ends the
receiving process; and a wait that times out closes the pair, which ends most other waits on it. So
after any failure the pair is dropped and a new one made. No wait can be prolonged or broken off:
so waits are long, on a thread that is left behind when the peer does not live.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store

from kvtransfer.backends.group_pair import NUM_LOOKS, GroupPair, made_aside
from kvtransfer.backends.pair import RECEIVER_RANK, SENDER_RANK, IsAlive
from kvtransfer.backends.ring import Ring
from kvtransfer.transport import PeerLost

MAX_HELD_UP_S = 600.0
"""The longest that a message or the making of a pair waits for a peer that is held up."""
GIVE_UP_TAG = 1
"""The tag of the receive that gives up a pair; messages have tag 0."""


class GlooBackend:
    """Makes gloo pairs. Messages are short, since a peer's death seldom cuts a short one and the
    loss is then known at once; many under way at the same time make up for the bandwidth."""

    name = "gloo"
    staging_device = torch.device("cpu")
    message_bytes = 1 << 20
    window = 16
    min_send_bytes = 1 << 20

    def __init__(self, host: str, timeout_s: float) -> None:
        """`host` is this node's own address, where peers connect. After `timeout_s` without a
        message a peer is lost, unless it is alive."""
        # One device (a thread and a listening socket) for all pairs: with one each, sixteen pairs
        # took 1.3 s to make instead of 0.05.
        self._device = ProcessGroupGloo.create_device(hostname=host)
        self._timeout_s = timeout_s

    def make_pair(
        self, store: Store, rank: int, window: int, buffer_bytes: int, is_peer_alive: IsAlive
    ) -> GlooPair:
        options: Any = ProcessGroupGloo._Options()
        options._devices = [self._device]
        options._timeout = timedelta(seconds=MAX_HELD_UP_S)
        try:
            group = made_aside(
                lambda: ProcessGroupGloo(store, rank, 2, options), self._timeout_s, is_peer_alive
            )
        except RuntimeError as error:
            raise PeerLost(f"no gloo pair could be made ({error})") from error
        ring = Ring(window, buffer_bytes, self.staging_device)
        peer = RECEIVER_RANK if rank == SENDER_RANK else SENDER_RANK
        return GlooPair(group, peer, ring, self._timeout_s, is_peer_alive)


class GlooPair(GroupPair):
    """A pair over gloo, with a thread that waits for its operations in turn."""

    def __init__(
        self,
        group: ProcessGroupGloo,
        peer_rank: int,
        ring: Ring,
        timeout_s: float,
        is_peer_alive: IsAlive,
    ) -> None:
        super().__init__(group, ring)
        self._peer_rank = peer_rank
        self._timeout_s = timeout_s
        self._is_peer_alive = is_peer_alive
        self._begun: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Operations (torch's Work) to wait for; None ends the thread."""
        self._ended: queue.SimpleQueue[RuntimeError | None] = queue.SimpleQueue()
        """What became of each."""
        threading.Thread(target=self._wait_in_turn, name="gloo-waits", daemon=True).start()

    def close(self) -> None:
        """Gives up what is under way: a receive of its own that times out closes the pair."""
        self._begun.put(None)
        if self._under_way:
            byte = torch.empty(1, dtype=torch.uint8)
            with suppress(RuntimeError):
                operation = self._group.recv([byte], self._peer_rank, GIVE_UP_TAG)
                operation.wait(timedelta(milliseconds=1))

    def _start(
        self, operation: Callable[[list[Tensor], int, int], Any], buffer: Tensor, rank: int
    ) -> None:
        super()._start(operation, buffer, rank)
        self._begun.put(self._under_way[-1][0])

    def _wait(self, work: Any) -> None:
        num_looks = 0
        while True:
            try:
                error = self._ended.get(timeout=self._timeout_s / NUM_LOOKS)
            except queue.Empty:
                num_looks += 1
                if num_looks % NUM_LOOKS == 0 and not self._is_peer_alive():
                    raise PeerLost(f"gloo moved nothing for {self._timeout_s:g} s") from None
                continue
            if error is not None:
                raise error
            return

    def _wait_in_turn(self) -> None:
        """Waits for one operation after another until `close`, or until one fails."""
        while (work := self._begun.get()) is not None:
            try:
                work.wait(timedelta(seconds=MAX_HELD_UP_S))
            except RuntimeError as error:
                self._ended.put(error)
                return
            self._ended.put(None)

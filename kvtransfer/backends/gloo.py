"""`GlooBackend`: pairs over gloo, between any two nodes. Pages of a GPU are staged in host memory.

What is known of gloo, all of it measured: a message that is cut by the peer's death hangs until its
timeout; a message longer than the posted receive ends the receiving process; there is no abort; and
a wait that times out closes the pair. So after any failure the pair is dropped and a new one made,
and no wait can be prolonged for a peer that is alive.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo, Store

from kvtransfer.backends.group_pair import GroupPair
from kvtransfer.backends.pair import IsAlive
from kvtransfer.backends.ring import Ring
from kvtransfer.transport import PeerLost


class GlooBackend:
    """Makes gloo pairs. Messages are short, since a peer's death seldom cuts a short one and the
    loss is then known at once; many under way at the same time make up for the bandwidth."""

    name = "gloo"
    staging_device = torch.device("cpu")
    message_bytes = 1 << 20
    window = 16
    min_send_bytes = 1 << 20

    def __init__(self, host: str, timeout_s: float) -> None:
        """`host` is this node's own address, where peers connect. Waits end after `timeout_s`."""
        # One device (a thread and a listening socket) for all pairs: with one each, sixteen pairs
        # took 1.3 s to make instead of 0.05.
        self._device = ProcessGroupGloo.create_device(hostname=host)
        self._timeout = timedelta(seconds=timeout_s)

    def make_pair(
        self, store: Store, rank: int, window: int, buffer_bytes: int, is_peer_alive: IsAlive
    ) -> GlooPair:
        options: Any = ProcessGroupGloo._Options()
        options._devices = [self._device]
        options._timeout = self._timeout
        try:
            group = ProcessGroupGloo(store, rank, 2, options)
        except RuntimeError as error:
            raise PeerLost(f"no gloo pair could be made ({error})") from error
        return GlooPair(group, self._timeout, Ring(window, buffer_bytes, self.staging_device))


class GlooPair(GroupPair):
    """A pair over gloo."""

    def __init__(self, group: ProcessGroupGloo, timeout: timedelta, ring: Ring) -> None:
        super().__init__(group, ring)
        self._timeout = timeout

    def close(self) -> None:
        """Does nothing: gloo has no abort, and the group is freed with its last reference."""

    def _wait(self, work: Any) -> None:
        work.wait(self._timeout)

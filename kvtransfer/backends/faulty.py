"""`FaultyBackend`: any backend with faults from a plan, given as data."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import Store

from kvtransfer.backends.pair import Pair, PairBackend
from kvtransfer.transport import PeerLost


@dataclass(frozen=True)
class FaultPlan:
    """Faults by the number of a message, counted from 0 over all pairs.

    `cut_sends` and `cut_receives` lose the peer there; `corrupt` flips a bit on the way out;
    `hold` waits for `Faults.released` before it sends. `no_pairs`: none can be made.
    """

    cut_sends: frozenset[int] = frozenset()
    cut_receives: frozenset[int] = frozenset()
    corrupt: frozenset[int] = frozenset()
    hold: frozenset[int] = frozenset()
    no_pairs: bool = False


class Faults:
    """A plan, how far it has come, and its switches; shared by the backends of several nodes."""

    def __init__(self, plan: FaultPlan) -> None:
        self.plan = plan
        self.num_sends = 0
        self.num_receives = 0
        self.held = threading.Event()
        """Set when a send waits."""
        self.released = threading.Event()


class FaultyBackend:
    def __init__(self, inner: PairBackend, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self.name = inner.name
        self.staging_device = inner.staging_device
        self.message_bytes = inner.message_bytes
        self.window = inner.window
        self.min_send_bytes = inner.min_send_bytes

    def make_pair(self, store: Store, rank: int, window: int, buffer_bytes: int) -> FaultyPair:
        if self._faults.plan.no_pairs:
            raise PeerLost("the plan allows no pair")
        return FaultyPair(self._inner.make_pair(store, rank, window, buffer_bytes), self._faults)


class FaultyPair:
    def __init__(self, inner: Pair, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._reserved = torch.empty(0)

    def reserve(self, num_bytes: int) -> Tensor:
        self._reserved = self._inner.reserve(num_bytes)
        return self._reserved

    def send(self) -> None:
        number, plan = self._faults.num_sends, self._faults.plan
        self._faults.num_sends += 1
        if number in plan.cut_sends:
            raise PeerLost("the plan cut this send")
        if number in plan.hold:
            self._faults.held.set()
            self._faults.released.wait(timeout=30.0)
        if number in plan.corrupt:
            self._reserved[0] ^= 1
        self._inner.send()

    def sent(self) -> None:
        self._inner.sent()

    def post(self, num_bytes: int) -> None:
        self._inner.post(num_bytes)

    def received(self) -> Tensor:
        number = self._faults.num_receives
        self._faults.num_receives += 1
        if number in self._faults.plan.cut_receives:
            raise PeerLost("the plan cut this receive")
        return self._inner.received()

    def release(self) -> None:
        self._inner.release()

    def close(self) -> None:
        self._inner.close()

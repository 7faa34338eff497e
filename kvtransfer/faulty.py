"""`FaultyBackend`: any backend with faults from a plan, given as data."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from torch import Tensor
from torch.distributed import Store

from kvtransfer.pair import Pair, PairBackend
from kvtransfer.transport import PeerLost


@dataclass(frozen=True)
class Plan:
    """Faults by the number of a frame, counted from 0 over all pairs of the backend.

    `cut_sends` and `cut_receives` lose the peer there; `corrupt` flips a bit on the way out;
    `hold` waits for `FaultyBackend.released` before it sends.
    """

    cut_sends: frozenset[int] = frozenset()
    cut_receives: frozenset[int] = frozenset()
    corrupt: frozenset[int] = frozenset()
    hold: frozenset[int] = frozenset()


class FaultyBackend:
    def __init__(self, inner: PairBackend, plan: Plan) -> None:
        self._inner = inner
        self.plan = plan
        self.name = inner.name
        self.staging_device = inner.staging_device
        self.num_sends = 0
        self.num_receives = 0
        self.held = threading.Event()
        """Set when a send waits."""
        self.released = threading.Event()

    def make_pair(self, store: Store, rank: int) -> FaultyPair:
        return FaultyPair(self._inner.make_pair(store, rank), self)


class FaultyPair:
    def __init__(self, inner: Pair, backend: FaultyBackend) -> None:
        self._inner = inner
        self._backend = backend

    def send(self, staging: Tensor) -> None:
        number, plan = self._backend.num_sends, self._backend.plan
        self._backend.num_sends += 1
        if number in plan.cut_sends:
            raise PeerLost("the plan cut this send")
        if number in plan.hold:
            self._backend.held.set()
            self._backend.released.wait(timeout=30.0)
        if number in plan.corrupt:
            staging = staging.clone()
            staging[0] ^= 1
        self._inner.send(staging)

    def receive(self, staging: Tensor) -> None:
        number = self._backend.num_receives
        self._backend.num_receives += 1
        if number in self._backend.plan.cut_receives:
            raise PeerLost("the plan cut this receive")
        self._inner.receive(staging)

    def close(self) -> None:
        self._inner.close()

"""`FaultyBackend`: wraps any backend and adds faults that a plan describes, for tests."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import Store

from kvtransfer.backends.pair import IsAlive, Pair, PairBackend
from kvtransfer.transport import PeerLost


@dataclass(frozen=True)
class FaultPlan:
    """Which messages meet which fault. Messages are numbered from 0 over all pairs, sends and
    receives separately."""

    cut_sends: frozenset[int] = frozenset()
    """These sends raise PeerLost."""
    cut_receives: frozenset[int] = frozenset()
    """These receives raise PeerLost."""
    corrupt: frozenset[int] = frozenset()
    """These sends have one bit flipped."""
    hold: frozenset[int] = frozenset()
    """These sends wait for `Faults.released`."""
    no_pairs: bool = False
    """True if no pair can be made at all."""


class Faults:
    """A plan and how far it has come. Backends of several nodes may share one, and its numbers."""

    def __init__(self, plan: FaultPlan) -> None:
        self.plan = plan
        self.num_sends = 0
        self.num_receives = 0
        self.held = threading.Event()
        """Is set when a send of `FaultPlan.hold` has begun to wait."""
        self.released = threading.Event()
        """To be set by the test, to let the sends that wait go on."""


class FaultyBackend:
    """A backend that behaves as `inner` does, but for the faults."""

    def __init__(self, inner: PairBackend, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self.name = inner.name
        self.staging_device = inner.staging_device
        self.message_bytes = inner.message_bytes
        self.window = inner.window
        self.min_send_bytes = inner.min_send_bytes

    def make_pair(
        self, store: Store, rank: int, window: int, buffer_bytes: int, is_peer_alive: IsAlive
    ) -> FaultyPair:
        if self._faults.plan.no_pairs:
            raise PeerLost("the plan allows no pair")
        inner = self._inner.make_pair(store, rank, window, buffer_bytes, is_peer_alive)
        return FaultyPair(inner, self._faults)


class FaultyPair:
    """A pair that behaves as `inner` does, but for the faults."""

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

"""`Network`: control messages between processes that die, freeze and lose each other.

As ZMQ's PUSH and PULL: messages of one sender to one receiver arrive in order, each at most once.
A message to an address where nobody listens any more never arrives. While a pair is cut, its
messages wait in the sender's queue, or (those that the kernel had taken already) are lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.sim.world.clock import VirtualClock

MIN_DELAY_S, MAX_DELAY_S = 0.0002, 0.002


class Network:
    """Delivers messages to `listen`ers by address. A process is known by its name, whatever its
    address."""

    def __init__(self, clock: VirtualClock, chance: random.Random) -> None:
        self._clock = clock
        self._chance = chance
        self._listeners: dict[str, tuple[str, Callable[[Any], None]]] = {}
        self._last_arrival: dict[tuple[str, str], float] = {}
        self._cut_until: dict[frozenset[str], tuple[float, bool]] = {}
        self._slow: dict[frozenset[str], tuple[float, float]] = {}
        self.num_lost = 0

    def listen(self, name: str, address: str, hear: Callable[[Any], None]) -> None:
        self._listeners[address] = name, hear

    def close(self, address: str) -> None:
        self._listeners.pop(address, None)

    def cut(self, one: str, other: str, for_s: float, loses: bool) -> None:
        """Cuts two processes off from each other. With `loses`, what is sent meanwhile is lost;
        otherwise it is delivered afterwards."""
        self._cut_until[frozenset((one, other))] = self._clock.now + for_s, loses

    def slow(self, one: str, other: str, for_s: float, delay_s: float) -> None:
        self._slow[frozenset((one, other))] = self._clock.now + for_s, delay_s

    def cut_until(self, one: str, other: str) -> float:
        """Returns when the pair can talk again; a time that is over if it can now."""
        return self._cut_until.get(frozenset((one, other)), (0.0, False))[0]

    def delay_s(self, one: str, other: str) -> float:
        until, delay_s = self._slow.get(frozenset((one, other)), (0.0, 0.0))
        usual = MIN_DELAY_S + self._chance.random() * (MAX_DELAY_S - MIN_DELAY_S)
        return usual + (delay_s if until > self._clock.now else 0.0)

    def send(self, sender: str, address: str, message: Any) -> None:
        found = self._listeners.get(address)
        if found is None:
            self.num_lost += 1
            return
        receiver, now = found[0], self._clock.now
        leaves = now
        pair = frozenset((sender, receiver))
        if pair in self._cut_until:
            until, loses = self._cut_until[pair]
            if until > now:
                if loses:
                    self.num_lost += 1
                    return
                leaves = until
        arrives = leaves + self.delay_s(sender, receiver)
        line = sender, address
        arrives = max(arrives, self._last_arrival.get(line, 0.0))
        self._last_arrival[line] = arrives
        self._clock.at(arrives, self._arrive, sender, address, message)

    def _arrive(self, sender: str, address: str, message: Any) -> None:
        found = self._listeners.get(address)
        if found is None:
            self.num_lost += 1
            return
        receiver, hear = found
        until, loses = self._cut_until.get(frozenset((sender, receiver)), (0.0, False))
        if until > self._clock.now and loses:
            self.num_lost += 1  # it was on the wire when the wire was cut
            return
        hear(message)

"""`Process`: what a simulated process has in common, whatever it does: it dies and freezes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim.world.clock import VirtualClock


class Process:
    """A simulated process. Its timers die with it, and wait while it is frozen."""

    def __init__(self, clock: VirtualClock, name: str) -> None:
        self.clock = clock
        self.name = name
        self.is_dead = False
        self.frozen_until = 0.0

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        self.clock.after(delay_s, self._run, call, arguments)

    def _run(self, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.is_dead:
            return
        if self.frozen_until > self.clock.now:
            self.clock.at(self.frozen_until, self._run, call, arguments)
            return
        call(*arguments)

"""`Pause`: whether the cluster generates, and if not, what became of the running requests. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import PauseMode


@dataclass(frozen=True)
class Pause:
    """One state of the whole cluster; the one with the largest number is the newest."""

    number: int = 0
    """Redis counts the pauses and their ends: each is one more than the one before."""
    mode: PauseMode | None = None
    """None while requests are generated."""

    @property
    def is_paused(self) -> bool:
        """True while no node is given work."""
        return self.mode is not None

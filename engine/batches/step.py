"""`Step`: one step of the model as schedulers and shells see it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from engine.batches.sequence import Sampled, Slice

OnLayer = Callable[[int], None]
"""Is told, while a step is computed, how many layers, from the first on, have their K and V in the
pool once the device has done what it was given so far."""


class Step(Protocol):
    """A step that was given to a device, which may not have finished it."""

    @property
    def slices(self) -> Sequence[Slice]:
        """The slices that the step computes."""

    @property
    def has_compiled(self) -> bool:
        """True if the step may have compiled or loaded kernels, so its time says nothing of the
        time that the next step of its size takes."""

    def sampled(self) -> list[Sampled | None]:
        """Waits for the end of the step. Returns what was sampled for each slice, None where
        nothing was wanted. Raises DeviceBroken."""

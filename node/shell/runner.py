"""`Runner`: what computes the steps of a node, as its shell sees it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.batches.sequence import Slice
from engine.batches.step import OnLayer, Step


class Runner(Protocol):
    """Computes the steps of a node; a `ModelRunner` does, and so do several ranks together."""

    @property
    def runs_ahead(self) -> bool:
        """True if the next step may be started before this one's tokens are known."""

    @property
    def num_compiles(self) -> int:
        """How many kernels and graphs were compiled, or loaded for the first time, so far."""

    def start(
        self,
        slices: Sequence[Slice],
        on_layer: OnLayer | None = None,
        after: Step | None = None,
    ) -> Step:
        """Starts one step; `after` is the step that `Slice.follows` refers to.

        Raises DeviceBroken if no step can succeed any more, and any other exception if this one
        cannot.
        """

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copies KV pages, ahead of whatever is started later; no page is both. Raises
        DeviceBroken."""

    def end_sequence(self, sequence_id: int) -> None:
        """Forgets the state of a sequence; does nothing if it has none."""

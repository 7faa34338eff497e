"""A runner that computes nothing, notes what it is told, and fails on one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.batches.sequence import Sampled, Slice
from engine.batches.step import OnLayer

POISON = 777
NO_NUMBERS = 778
"""A token for which the model's logits are not numbers."""


@dataclass(frozen=True, eq=False)
class Step:
    """A step that answers 5 to everything. It fails when it is asked, if it has an error."""

    number: int
    slices: Sequence[Slice]
    told: list[str]
    error: Exception | None = None
    has_compiled: bool = False

    def sampled(self) -> list[Sampled | None]:
        self.told.append(f"wait {self.number}")
        if self.error is not None:
            raise self.error
        return [self._sampled(part) if part.sampling else None for part in self.slices]

    def _sampled(self, part: Slice) -> Sampled:
        if NO_NUMBERS in part.token_ids:
            return Sampled((), error="not numbers")
        return Sampled((5,))


class Runner:
    """A runner that fails on one token, as a faulty kernel might."""

    num_compiles = 0

    def __init__(
        self, error: Exception, runs_ahead: bool = False, fails_late: bool = False
    ) -> None:
        """`fails_late`: not when a step is started, but when its tokens are asked for."""
        self.runs_ahead = runs_ahead
        self.told: list[str] = []
        self._error = error
        self._fails_late = fails_late
        self._num_started = 0

    def start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None = None, after: Step | None = None
    ) -> Step:
        """Starts a step of two layers; the error comes after the first one."""
        self._num_started += 1
        self.told.append(f"start {self._num_started}")
        fails = any(POISON in part.token_ids for part in slices)
        if on_layer is not None:
            on_layer(1)
        if fails and not self._fails_late:
            raise self._error
        if on_layer is not None:
            on_layer(2)
        for part in slices:
            if part.follows is not None:
                assert after is not None and after.slices[part.follows].sampling is not None
        return Step(self._num_started, slices, self.told, self._error if fails else None)

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        self.told.append(f"copy {list(sources)} to {list(destinations)}")

    def end_sequence(self, sequence_id: int) -> None:
        self.told.append(f"end {sequence_id}")

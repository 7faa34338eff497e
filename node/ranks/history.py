"""`StepHistory`: the steps that a later one may follow, by number. Pure."""

from __future__ import annotations

from engine.batches.step import Step


class StepHistory:
    """Remembers steps by number. Numbers rise, and no step follows one that is older than what the
    step before it followed."""

    def __init__(self) -> None:
        self._steps: dict[int, Step] = {}

    def add(self, number: int, step: Step) -> None:
        """Remembers a step."""
        self._steps[number] = step

    def number_of(self, step: Step | None) -> int:
        """Returns the number of a step; 0 for None."""
        return next((number for number, other in self._steps.items() if other is step), 0)

    def follow(self, number: int) -> Step | None:
        """Returns the step of this number and forgets older ones; None for 0."""
        if number == 0:
            return None
        self._steps = {n: step for n, step in self._steps.items() if n >= number}
        return self._steps[number]

"""`StepHistory`: the steps that a later one may follow, by number. Pure but for what they are."""

from __future__ import annotations

from engine.steps.runner import Step


class StepHistory:
    """Numbers rise, and what steps follow is never older than what a step before them followed."""

    def __init__(self) -> None:
        self._steps: dict[int, Step] = {}

    def add(self, number: int, step: Step) -> None:
        self._steps[number] = step

    def number_of(self, step: Step | None) -> int:
        """0 for none."""
        return next((number for number, other in self._steps.items() if other is step), 0)

    def follow(self, number: int) -> Step | None:
        """The step of this number; older ones are forgotten."""
        if number == 0:
            return None
        self._steps = {n: step for n, step in self._steps.items() if n >= number}
        return self._steps[number]

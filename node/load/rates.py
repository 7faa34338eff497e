"""Measured rates of a node, smoothed over its last steps. Pure.

Who measures leaves out steps that failed and steps that compiled something: their time is no
promise for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.batches.sequence import Slice

WEIGHT = 0.2
"""Share of the newest step in a rate."""
MIN_PROMPT_TOKENS = 16
"""Slices shorter than this say nothing about the rate of long ones."""


class Rates:
    """Measures how fast this node computes prompts, and how long its steps without prompts take.
    Both are 0 until there is something to measure."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.step_s = 0.0

    def observe(self, slices: Sequence[Slice], seconds: float) -> None:
        """Adds a step to the measurements. With enough tokens of prompts it counts for the speed of
        prompts, without any for the duration of steps.

        `seconds` is how long the device needed for it: from the start of the step, or the end of
        the one before it, to its own end.
        """
        if seconds <= 0:  # a clock that is coarse, or played, tells nothing
            return
        lengths = [len(s.token_ids) for s in slices if len(s.token_ids) > 1]
        if not lengths:
            self.step_s = _blend(self.step_s, seconds)
        elif max(lengths) >= MIN_PROMPT_TOKENS:
            rate = sum(lengths) / seconds
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, rate)


def _blend(old: float, new: float) -> float:
    return new if old == 0 else (1 - WEIGHT) * old + WEIGHT * new

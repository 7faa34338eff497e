"""Measured rates of a node, smoothed over its last steps. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from engine.steps.sequence import Slice

WEIGHT = 0.2
"""Share of the newest step in a rate."""
MIN_PROMPT_TOKENS = 16
"""Chunks shorter than this say nothing about the rate of long ones."""


class Rates:
    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.step_s = 0.0

    def observe(self, slices: Sequence[Slice], seconds: float) -> None:
        """One step took `seconds`."""
        num_prompt_tokens = sum(len(s.token_ids) for s in slices if len(s.token_ids) > 1)
        if num_prompt_tokens == 0:
            self.step_s = _blend(self.step_s, seconds)
        elif num_prompt_tokens >= MIN_PROMPT_TOKENS:
            rate = num_prompt_tokens / seconds
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, rate)


def _blend(old: float, new: float) -> float:
    return new if old == 0 else (1 - WEIGHT) * old + WEIGHT * new

"""`ModelledRunner`: computes nothing, and takes the time that a model of the hardware says.

A step takes the time of its prompt tokens; the step that ends a prompt takes `base_s` more. Steps
follow each other without a gap if the next one is started soon after the end of the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.batches.sequence import Sampled, Slice
from engine.batches.step import OnLayer, Step

ANSWER = 100
"""The id of the only token that is ever answered."""
TURN_S = 0.02
"""A step that is started so soon after the one before counts as started at its end: what a turn of
the loop costs on a machine that is shared by all nodes is not what is modelled."""


@dataclass(frozen=True)
class Pace:
    """The time that tokens take: `base_s` for them all, and some for each."""

    tokens_per_s: float = 0.0
    """0: no time at all."""
    base_s: float = 0.0

    def seconds(self, num_tokens: int, num_bases: int = 1) -> float:
        """Returns how long the tokens take, and so many times `base_s`."""
        if not self.tokens_per_s:
            return 0.0
        return num_tokens / self.tokens_per_s + num_bases * self.base_s


@dataclass(frozen=True)
class ModelledStep:
    """A step that is over at `ends_at` of the runner's clock."""

    slices: Sequence[Slice]
    ends_at: float
    wait_until: Callable[[float], None]
    has_compiled: bool = False

    def sampled(self) -> list[Sampled | None]:
        self.wait_until(self.ends_at)
        return [Sampled((ANSWER,)) if part.sampling else None for part in self.slices]


class ModelledRunner:
    """A `Runner` for the shell of a real node."""

    runs_ahead = False
    num_compiles = 0

    def __init__(
        self,
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._pace = pace
        self._clock = clock
        self._sleep = sleep
        self._free_at = float("-inf")

    def start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None = None, after: Step | None = None
    ) -> ModelledStep:
        now = self._clock()
        began = self._free_at if 0 <= now - self._free_at < TURN_S else now
        prompts = [part for part in slices if len(part.token_ids) > 1]  # the rest are answers
        num_tokens = sum(len(part.token_ids) for part in prompts)
        num_ends = sum(part.sampling is not None for part in prompts)
        self._free_at = began + self._pace.seconds(num_tokens, num_ends)
        return ModelledStep(slices, self._free_at, self._wait_until)

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        pass

    def end_sequence(self, sequence_id: int) -> None:
        pass

    def _wait_until(self, when: float) -> None:
        self._sleep(max(0.0, when - self._clock()))

"""Measured rates of a node, smoothed over its last steps. Pure.

Who measures leaves out steps that failed and steps that compiled something: their time is no
promise for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.batches.sequence import Slice
from protocol.admission import MIN_CHUNK_TOKENS

WEIGHT = 0.2
"""Share of the newest step in a rate."""
MIN_SHARE = 0.05
"""A chunk beside answers is taken to need this share of its step at least, and so is the rest of
the step: both vary by more than that."""
MOST_TIMES_LONGER = 2.0
"""A step without prompts that takes more times as long as those before it counts as so many."""


@dataclass(frozen=True)
class StepRates:
    """How long the steps of a node take; 0 stands for what was not measured yet."""

    step_s: float = 0.0
    """A step without prompts."""
    prefill_tokens_per_s: float = 0.0
    """The tokens of prompts that are computed in each second that a step lasts longer."""


UNMEASURED = StepRates()


class Rates:
    """Measures how fast this node computes prompts, and how long its steps without prompts take."""

    def __init__(self) -> None:
        self.step_s = 0.0
        """0 until there was a step without prompts."""
        self._prompt_tokens = 0.0
        self._prompt_s = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """The rate of the last prompts, of which long ones count more than short ones; 0 until
        there was one."""
        return self._prompt_tokens / self._prompt_s if self._prompt_s else 0.0

    def read(self) -> StepRates:
        """Returns what is measured now."""
        return StepRates(self.step_s, self.prefill_tokens_per_s)

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
            if self.step_s:  # a process that was stopped for a while says nothing of its steps
                seconds = min(seconds, MOST_TIMES_LONGER * self.step_s)
            self.step_s = _blend(self.step_s, seconds)
        elif max(lengths) >= MIN_CHUNK_TOKENS:
            is_beside_answers = any(map(_is_of_answer, slices))
            self._observe_chunks(sum(lengths), seconds, is_beside_answers)

    def _observe_chunks(self, num_tokens: int, seconds: float, is_beside_answers: bool) -> None:
        if is_beside_answers:
            rate = self.prefill_tokens_per_s
            is_known = 0.0 < self.step_s < seconds
            if not is_known and rate:
                # The step of the answers is not known, or would have been longer without the
                # chunk: it took what the chunk has left. No second guess at the rate: of an
                # answers' step that seems too long, chunks would seem too fast, and be too long.
                self.step_s = max(seconds - num_tokens / rate, MIN_SHARE * seconds)
                return
            if is_known:
                seconds = max(seconds - self.step_s, MIN_SHARE * seconds)
        self._prompt_tokens = _blend(self._prompt_tokens, num_tokens)
        self._prompt_s = _blend(self._prompt_s, seconds)


def _is_of_answer(part: Slice) -> bool:
    """Returns True for the one token of an answer. The last chunk of a prompt may be as short:
    taken for an answer, it would make steps of answers seem as short as what other chunks leave."""
    if len(part.token_ids) > 1 or part.sampling is None:
        return False
    return part.start >= part.sampling.prompt_length


def _blend(old: float, new: float) -> float:
    return new if old == 0 else (1 - WEIGHT) * old + WEIGHT * new

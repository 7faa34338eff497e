"""What every engine of the comparison is asked: cells of batch and context, in the same order.

An engine computes a prompt, or decodes from a context that is already there. What that context
holds is up to the engine: time depends on how much K and V is read, not on their values.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

OURS = "kvrelay"
TRANSFORMERS = "transformers"
LLAMA_CPP = "llama.cpp"
PEERS = (TRANSFORMERS, LLAMA_CPP)
WARM_UP_STEPS = 2
PREFILL_BUDGET_S = 2.0
MAX_PREFILLS = 5
LONG_PREFILL_TOKENS = 1024
"""Computing so many warms up by itself."""


@dataclass(frozen=True)
class Cell:
    batch: int
    """Sequences, of equal length."""
    context: int
    """Tokens of each sequence before the first timed step."""

    num_steps: int
    """Timed ones."""

    @classmethod
    def on_cpu(cls, batch: int, context: int) -> Cell:
        """With fewer steps, the longer they take."""
        return cls(batch, context, max(5, min(32, (1 << 16) // (batch * context))))

    @property
    def num_tokens(self) -> int:
        return self.batch * self.context

    @property
    def length(self) -> int:
        """How long each sequence is at the end, steps that warm up included."""
        return self.context + WARM_UP_STEPS + self.num_steps

    @property
    def max_length(self) -> int:
        """How long a sequence may get in `benchmarks.engines.loop`, where a step computes one
        prompt at least, and the answers to those before it go on."""
        return self.length + self.batch

    @property
    def mean_context(self) -> float:
        """How many tokens a timed step attends to, the new one included."""
        return self.context + WARM_UP_STEPS + (self.num_steps + 1) / 2


class ComparedEngine(Protocol):
    """One implementation with the weights of this run."""

    name: str

    def prefill_s(self, cell: Cell) -> float:
        """Seconds from `batch` prompts of `context` tokens to the first token of each."""

    def step_s(self, cell: Cell) -> list[float]:
        """Seconds of each timed step, greedy choice of tokens included."""

    def choices(self, tokens: Sequence[int], num_prompt_tokens: int) -> list[int]:
        """The likeliest token after the first `num_prompt_tokens`, after one more, and so on.

        The prompt in one step, then token by token, each the one that `tokens` says.
        """


@dataclass(frozen=True)
class Timing:
    """One engine in one cell."""

    prefill_s: float | None
    """None: left out."""
    step_s: float


def measure(engine: ComparedEngine, cell: Cell, with_prefill: bool) -> Timing:
    """Medians. Short prompts are computed once to warm up, all until the budget is spent."""
    prefill_s = None
    if with_prefill:
        seconds: list[float] = []
        if cell.num_tokens < LONG_PREFILL_TOKENS:
            engine.prefill_s(cell)
        while not seconds or (sum(seconds) < PREFILL_BUDGET_S and len(seconds) < MAX_PREFILLS):
            seconds.append(engine.prefill_s(cell))
        prefill_s = statistics.median(seconds)
    return Timing(prefill_s, statistics.median(engine.step_s(cell)))


def cells(batches: Sequence[int], contexts: Sequence[int]) -> list[Cell]:
    """The least memory first: what the last cells need is used late."""
    every = [Cell.on_cpu(batch, context) for batch in batches for context in contexts]
    return sorted(every, key=lambda cell: (cell.num_tokens, cell.batch))

"""`GpuPlan`: what each engine is asked on one GPU. It is data, since peers run in processes of
their own and read it as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.engines.cells import WARM_UP_STEPS

PROMPTS = (512, 2048, 4096, 8192, 32_768)
DECODES = ((1, 2048), (8, 2048), (32, 2048), (128, 2048), (1, 32_768))
"""(batch, context)."""
PROMPTS_OF_FORMS = (512, 2048, 4096)
DECODES_OF_FORMS = ((1, 2048), (8, 2048), (16, 1024), (32, 512), (32, 2048), (64, 512), (128, 256))
PROMPTS_OF_RANKS = (2048, 512, 8192)
DECODES_OF_RANKS = ((1, 2048), (8, 2048), (32, 2048), (128, 2048), (1, 32_768))
CPU_PROMPTS_OF_RANKS, CPU_DECODES_OF_RANKS = (128,), ((1, 128), (8, 128))
UNEQUAL = (*[300] * 32, 12_000)
"""Contexts of short chats beside one long one."""
NUM_STEPS, QUICK_STEPS = 64, 16
NUM_PROMPTS, QUICK_PROMPTS = 7, 3
NUM_QUICK_PROMPT_LENGTHS = 4


class DecodeCell(msgspec.Struct, frozen=True):
    """A batch of sequences that decode side by side."""

    contexts: tuple[int, ...]
    """How many tokens each sequence has before the first timed step."""
    num_steps: int

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return len(self.contexts)

    @property
    def longest(self) -> int:
        """How long the longest sequence is at the end, steps that warm up included."""
        return max(self.contexts) + WARM_UP_STEPS + self.num_steps

    @property
    def mean_context(self) -> float:
        """How many tokens a timed step attends to per sequence, the new one included."""
        steps = WARM_UP_STEPS + (self.num_steps + 1) / 2
        return sum(self.contexts) / self.batch + steps

    @property
    def label(self) -> str:
        """Tells the contexts in a table: 2048, or 32 × 300 + 1 × 12000."""
        counts = {context: self.contexts.count(context) for context in self.contexts}
        if len(counts) == 1:
            return str(self.contexts[0])
        return " + ".join(f"{count} × {context}" for context, count in counts.items())


class GpuPlan(msgspec.Struct, frozen=True):
    """The prompts that are computed alone, and the batches that are decoded."""

    prompts: tuple[int, ...]
    num_prompts: int
    """How many prompts of each length are timed."""
    decodes: tuple[DecodeCell, ...]

    @property
    def longest(self) -> int:
        """The most tokens that any sequence has."""
        return max([cell.longest for cell in self.decodes] + [n + 1 for n in self.prompts])

    @property
    def largest_batch(self) -> int:
        """The most sequences that decode at once."""
        return max(cell.batch for cell in self.decodes)


def standard_plan(is_quick: bool) -> GpuPlan:
    """Returns the plan of the benchmark; a quick one has fewer lengths and steps."""
    num_steps = QUICK_STEPS if is_quick else NUM_STEPS
    equal = [(context,) * batch for batch, context in DECODES]
    return GpuPlan(
        PROMPTS[:NUM_QUICK_PROMPT_LENGTHS] if is_quick else PROMPTS,
        QUICK_PROMPTS if is_quick else NUM_PROMPTS,
        _cells([*equal, UNEQUAL], num_steps),
    )


def forms_plan(is_quick: bool) -> GpuPlan:
    """Returns the plan of the comparison of `--quantization`."""
    prompts = PROMPTS_OF_FORMS[:1] if is_quick else PROMPTS_OF_FORMS
    decodes = DECODES_OF_FORMS[:2] if is_quick else DECODES_OF_FORMS
    batches = [(context,) * batch for batch, context in decodes]
    return GpuPlan(prompts, QUICK_PROMPTS, _cells(batches, QUICK_STEPS))


def ranks_plan(is_quick: bool, on_gpu: bool) -> GpuPlan:
    """Returns the plan of the ranks of a tensor-parallel model. On a CPU it is a small one, which
    shows that all works."""
    prompts: Sequence[int] = PROMPTS_OF_RANKS
    decodes: Sequence[tuple[int, int]] = DECODES_OF_RANKS
    if is_quick:
        prompts, decodes = prompts[:1], decodes[:3]
    if not on_gpu:
        prompts, decodes = CPU_PROMPTS_OF_RANKS, CPU_DECODES_OF_RANKS
    batches = [(context,) * batch for batch, context in decodes]
    return GpuPlan(tuple(prompts), QUICK_PROMPTS, _cells(batches, QUICK_STEPS))


def _cells(batches: Sequence[tuple[int, ...]], num_steps: int) -> tuple[DecodeCell, ...]:
    return tuple(DecodeCell(contexts, num_steps) for contexts in batches)

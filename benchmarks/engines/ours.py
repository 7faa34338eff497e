"""Our engine as one of the comparison: a `ModelRunner`, driven by slices as a node drives it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from benchmarks.engines.cells import OURS, WARM_UP_STEPS, Cell
from engine.batches.sequence import UNKNOWN, Slice
from engine.batches.step import Step
from engine.steps.runner import ModelRunner
from protocol.layout import KVLayout
from protocol.sampling import Sampling

GREEDY = Sampling(temperature=0.0)


class Ours:
    name = OURS

    def __init__(self, runner: ModelRunner, chunk_tokens: int) -> None:
        """`chunk_tokens`: of prompts in one step, as a node has it."""
        self._runner = runner
        self._chunk_tokens = chunk_tokens
        self._chance = random.Random(7)

    def prefill_s(self, cell: Cell) -> float:
        """Prompt after prompt, in chunks that may hold the end of one and the start of others."""
        prompts = [self._tokens(cell.context) for _ in range(cell.batch)]
        tables = self._page_tables([cell.length] * cell.batch)
        steps = _chunks(prompts, tables, self._chunk_tokens)
        started = time.perf_counter()
        for slices in steps:
            step = self._runner.start(slices)
        step.sampled()
        return time.perf_counter() - started

    def step_s(self, cell: Cell) -> list[float]:
        """One step strictly after the other."""
        return self.steps_s([cell.context] * cell.batch, cell.num_steps)

    def step_ahead_s(self, cell: Cell) -> list[float]:
        """With one step under way."""
        return self.steps_ahead_s([cell.context] * cell.batch, cell.num_steps)

    def steps_s(self, contexts: Sequence[int], num_steps: int) -> list[float]:
        """Decodes sequences of `contexts`, one step strictly after the other."""
        tables = self._filled(contexts, num_steps)
        tokens = self._tokens(len(contexts))
        times = []
        for i in range(WARM_UP_STEPS + num_steps):
            started = time.perf_counter()
            step = self._runner.start(_singles(tokens, contexts, i, tables))
            tokens = _sampled(step)
            times.append(time.perf_counter() - started)
        return times[WARM_UP_STEPS:]

    def steps_ahead_s(self, contexts: Sequence[int], num_steps: int) -> list[float]:
        """Decodes with one step under way: each is started before the tokens of the one before it
        are read, as a node does where the device runs ahead."""
        tables = self._filled(contexts, num_steps)
        first = _singles(self._tokens(len(contexts)), contexts, 0, tables)
        before = self._runner.start(first)
        times = [time.perf_counter()]
        for i in range(1, WARM_UP_STEPS + num_steps):
            slices = _followers(contexts, i, tables)
            step = self._runner.start(slices, after=before)
            before.sampled()
            times.append(time.perf_counter())
            before = step
        before.sampled()
        times.append(time.perf_counter())
        return [end - begin for begin, end in pairwise(times)][WARM_UP_STEPS:]

    def choices(self, tokens: Sequence[int], num_prompt_tokens: int) -> list[int]:
        (pages,) = self._page_tables([len(tokens)])
        ends = range(num_prompt_tokens, len(tokens) + 1)
        chosen = []
        for start, end in pairwise([0, *ends]):
            part = Slice(tokens[start:end], start, pages, GREEDY)
            chosen += _sampled(self._runner.start([part]))
        return chosen

    def _filled(self, contexts: Sequence[int], num_steps: int) -> list[np.ndarray]:
        """Returns page tables of sequences that hold the same random token everywhere, with room
        for the steps."""
        tables = self._page_tables([n + WARM_UP_STEPS + num_steps for n in contexts])
        pool = self._runner.kv_cache.pool
        token = torch.randn(pool.shape[-2:], device=pool.device).to(pool.dtype)
        for table in tables:
            pool[:, torch.from_numpy(table).to(pool.device)] = token
        return tables

    def _page_tables(self, lengths: Sequence[int]) -> list[np.ndarray]:
        """Returns pages in no order, as in a node that has served for a while; the same memory is
        used again by every cell."""
        counts = [self._runner.layout.num_pages(length) for length in lengths]
        used = list(range(sum(counts)))
        self._chance.shuffle(used)
        return np.split(np.array(used, dtype=np.int32), np.cumsum(counts)[:-1])

    def _tokens(self, count: int) -> list[int]:
        return [self._chance.randrange(3, self._runner.config.vocab_size) for _ in range(count)]


def num_pages_for(cells: Sequence[Cell], layout: KVLayout) -> int:
    """Returns the pages of a pool that holds the largest of the cells."""
    return max(cell.batch * layout.num_pages(cell.max_length) for cell in cells)


def _chunks(
    prompts: Sequence[Sequence[int]], tables: Sequence[np.ndarray], chunk_tokens: int
) -> list[list[Slice]]:
    """The slices of each step that computes the prompts in order; a token is wanted of each."""
    steps: list[list[Slice]] = [[]]
    room = chunk_tokens
    for prompt, table in zip(prompts, tables, strict=True):
        start = 0
        while start < len(prompt):
            if room == 0:
                steps.append([])
                room = chunk_tokens
            end = min(start + room, len(prompt))
            sampling = GREEDY if end == len(prompt) else None
            steps[-1].append(Slice(prompt[start:end], start, table, sampling))
            room -= end - start
            start = end
    return steps


def _singles(
    tokens: Sequence[int], contexts: Sequence[int], step: int, tables: Sequence[np.ndarray]
) -> list[Slice]:
    """Returns the slices of a step, by which the sequences have grown by `step` tokens."""
    return [
        Slice([token], context + step, table, GREEDY)
        for token, context, table in zip(tokens, contexts, tables, strict=True)
    ]


def _followers(contexts: Sequence[int], step: int, tables: Sequence[np.ndarray]) -> list[Slice]:
    """Returns the same slices as `_singles`, whose tokens the step before samples."""
    return [
        Slice([UNKNOWN], context + step, table, GREEDY, follows=i)
        for i, (context, table) in enumerate(zip(contexts, tables, strict=True))
    ]


def _sampled(step: Step) -> list[int]:
    """The token of every slice, all of which want one."""
    return [sampled.tokens[0] for sampled in step.sampled() if sampled is not None]

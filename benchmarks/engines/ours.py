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
        steps = _chunks(prompts, self._page_tables(cell), self._chunk_tokens)
        started = time.perf_counter()
        for slices in steps:
            step = self._runner.start(slices)
        step.sampled()
        return time.perf_counter() - started

    def step_s(self, cell: Cell) -> list[float]:
        """One step strictly after the other."""
        tables = self._filled(cell)
        tokens = self._tokens(cell.batch)
        times = []
        for i in range(WARM_UP_STEPS + cell.num_steps):
            started = time.perf_counter()
            step = self._runner.start(_singles(tokens, cell.context + i, tables))
            tokens = _sampled(step)
            times.append(time.perf_counter() - started)
        return times[WARM_UP_STEPS:]

    def step_ahead_s(self, cell: Cell) -> list[float]:
        """With one step under way: each is started before the tokens of the one before it are
        read, as a node does where the device runs ahead."""
        tables = self._filled(cell)
        before = self._runner.start(_singles(self._tokens(cell.batch), cell.context, tables))
        times = [time.perf_counter()]
        for i in range(1, WARM_UP_STEPS + cell.num_steps):
            slices = _followers(cell.context + i, tables)
            step = self._runner.start(slices, after=before)
            before.sampled()
            times.append(time.perf_counter())
            before = step
        before.sampled()
        times.append(time.perf_counter())
        return [end - begin for begin, end in pairwise(times)][WARM_UP_STEPS:]

    def choices(self, tokens: Sequence[int], num_prompt_tokens: int) -> list[int]:
        (pages,) = self._page_tables(Cell(1, len(tokens), 0))
        ends = range(num_prompt_tokens, len(tokens) + 1)
        chosen = []
        for start, end in pairwise([0, *ends]):
            part = Slice(tokens[start:end], start, pages, GREEDY)
            chosen += _sampled(self._runner.start([part]))
        return chosen

    def _filled(self, cell: Cell) -> list[np.ndarray]:
        """Page tables of `batch` sequences that hold the same random token everywhere."""
        tables = self._page_tables(cell)
        pool = self._runner.kv_cache.pool
        token = torch.randn(pool.shape[-2:], device=pool.device).to(pool.dtype)
        for table in tables:
            pool[:, torch.from_numpy(table).to(pool.device)] = token
        return tables

    def _page_tables(self, cell: Cell) -> list[np.ndarray]:
        """Pages in no order, as in a node that has served for a while; the same memory is used
        again by every cell."""
        count = self._runner.layout.num_pages(cell.length)
        used = list(range(count * cell.batch))
        self._chance.shuffle(used)
        return list(np.array(used, dtype=np.int32).reshape(cell.batch, count))

    def _tokens(self, count: int) -> list[int]:
        return [self._chance.randrange(3, self._runner.config.vocab_size) for _ in range(count)]


def num_pages_for(cells: Sequence[Cell], layout: KVLayout) -> int:
    """Returns the pages of a pool that holds the largest of the cells."""
    return max(cell.batch * layout.num_pages(cell.length) for cell in cells)


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


def _singles(tokens: Sequence[int], start: int, tables: Sequence[np.ndarray]) -> list[Slice]:
    return [
        Slice([token], start, table, GREEDY) for token, table in zip(tokens, tables, strict=True)
    ]


def _followers(start: int, tables: Sequence[np.ndarray]) -> list[Slice]:
    return [Slice([UNKNOWN], start, table, GREEDY, follows=i) for i, table in enumerate(tables)]


def _sampled(step: Step) -> list[int]:
    """The token of every slice, all of which want one."""
    return [sampled.tokens[0] for sampled in step.sampled() if sampled is not None]

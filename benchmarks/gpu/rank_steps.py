"""What each rank of a tensor-parallel model does in the benchmark: it loads its part of random
weights, and then computes the same prompts and decode steps as all other ranks, and at their side.

A rank cannot be faster than it reads its own weights and its own KV heads; and between its layers
it waits for sums over all ranks. Those are measured by themselves, too, so that one sees what the
rest is. No slices are told to other ranks, as a node does: each rank makes the same ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.engines.cells import Cell
from benchmarks.engines.floor import (
    MachineRates,
    StepWork,
    decode_work,
    measure_rates,
    prefill_work,
)
from benchmarks.engines.ours import Ours
from benchmarks.gpu.measuring import num_pages_of_plan
from benchmarks.gpu.plan import DecodeCell, GpuPlan
from engine.build import load_model_runner
from engine.model.linear import vocabulary_rows
from engine.options import EngineOptions
from engine.parallel import TensorParallel
from engine.steps.runner import ModelRunner

REPEATS, REPLAYS = 5, 4
"""The collective operations of a step are timed so often, and so many steps' at once."""


@dataclass(frozen=True)
class RankTask:
    """What all ranks are to measure."""

    model: Path
    """A directory that has a config.json."""
    options: EngineOptions
    plan: GpuPlan
    chunk_tokens: int
    """How many tokens of a prompt are computed in one step."""


@dataclass(frozen=True)
class RankRow:
    """A prompt alone, or the decode steps of a cell, as rank 0 saw them; medians in seconds."""

    what: str
    """prefill or decode."""
    batch: int
    context: str
    seconds: float
    """Until the first token of a prompt; of a decode step with one step under way."""
    strict_s: float | None
    """Of decode steps one after the other; None for a prompt."""
    floor_s: float
    """What this rank's part cannot be faster than; the waiting for other ranks is not in it."""
    collectives_s: float
    """What the sums over all ranks take by themselves."""


@dataclass(frozen=True)
class RankFigures:
    """What rank 0 measured."""

    rows: Sequence[RankRow]
    rates: MachineRates
    attention: str
    load_s: float
    """How long it took to make the weights, and to record decode steps on a GPU."""
    weight_bytes: int
    """What one rank's part of the weights takes."""


def measure_rank(task: RankTask, device: torch.device, parallel: TensorParallel) -> RankFigures:
    """Measures every prompt and every cell of the plan. All ranks must do so at the same time."""
    plan = task.plan
    options = replace(
        task.options, max_running_requests=plan.largest_batch, context_length=plan.longest
    )
    rates = measure_rates(getattr(torch, options.dtype), device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    began_s = time.perf_counter()
    runner = load_model_runner(
        task.model, options, lambda layout: num_pages_of_plan(plan, layout), device, parallel
    )
    load_s = time.perf_counter() - began_s
    rank = _MeasuredRank(task, runner, rates, parallel)
    rows = [rank.prefill(num_tokens) for num_tokens in plan.prompts]
    rows += [rank.decode(cell) for cell in plan.decodes]
    return RankFigures(rows, rates, runner.attention.name, load_s, _bytes_of(runner.model))


class _MeasuredRank:
    """This process's rank, loaded."""

    def __init__(
        self, task: RankTask, runner: ModelRunner, rates: MachineRates, parallel: TensorParallel
    ) -> None:
        self._task, self._runner, self._rates = task, runner, rates
        self._size = parallel.size
        self._engine = Ours(runner, task.chunk_tokens)
        self._collectives = Collectives(runner, parallel)

    def prefill(self, num_tokens: int) -> RankRow:
        """Measures prompts of one length, one after the other."""
        cell, plan, runner = Cell(1, num_tokens, 0), self._task.plan, self._runner
        self._engine.prefill_s(cell)
        seconds = statistics.median(self._engine.prefill_s(cell) for _ in range(plan.num_prompts))
        work = prefill_work(runner.config, runner.layout.dtype, 1, num_tokens)
        floor_s = work.flops / self._size / self._rates.matmul_flop_s
        begins = range(0, num_tokens, self._task.chunk_tokens)
        chunks = [min(self._task.chunk_tokens, num_tokens - begin) for begin in begins]
        collectives_s = sum(
            chunks.count(size) * self._collectives.seconds(size, 1) for size in sorted({*chunks})
        )
        return RankRow("prefill", 1, str(num_tokens), seconds, None, floor_s, collectives_s)

    def decode(self, cell: DecodeCell) -> RankRow:
        """Measures the steps of a batch."""
        engine = self._engine
        ahead_s, strict_s = (
            statistics.median(measure(cell.contexts, cell.num_steps))
            for measure in (engine.steps_ahead_s, engine.steps_s)
        )
        floor_s = rank_work(self._runner, cell, self._size).floor_s(self._rates)
        collectives_s = self._collectives.seconds(cell.batch, cell.batch)
        return RankRow("decode", cell.batch, cell.label, ahead_s, strict_s, floor_s, collectives_s)


def rank_work(runner: ModelRunner, cell: DecodeCell, size: int) -> StepWork:
    """Returns what one rank of `size` must do in a decode step: it reads its weights, as they lie,
    but for the embedding, and the K and V of its own heads."""
    whole = decode_work(runner.config, runner.layout.dtype, cell.batch, cell.mean_context)
    token_bytes = runner.layout.page_bytes / runner.layout.page_size
    embedding = 0 if runner.config.tie_word_embeddings else _bytes_of(runner.model.embedding)
    return StepWork(
        weight_bytes=_bytes_of(runner.model) - embedding,
        kv_bytes=round(cell.batch * cell.mean_context * token_bytes),
        flops=whole.flops // size,
    )


def _bytes_of(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


class Collectives:
    """The operations of one step of a Llama in which ranks wait for one another: a sum of hidden
    states behind the embedding and behind both halves of each layer, and the logits of all."""

    def __init__(self, runner: ModelRunner, parallel: TensorParallel) -> None:
        self._config = runner.config
        self._dtype = runner.model.dtype
        self._device = runner.device
        self._parallel = parallel

    def seconds(self, num_rows: int, num_sampled: int) -> float:
        """Returns what they take in a step of `num_rows` tokens, of which `num_sampled` rows have
        logits. On a GPU they are recorded and replayed, as in a decode step."""
        config = self._config
        hidden = self._zeros(num_rows, config.hidden_size)
        logits = self._zeros(num_sampled, vocabulary_rows(config.vocab_size, self._parallel))

        def operations() -> None:
            for _ in range(1 + 2 * config.num_layers):
                self._parallel.all_reduce(hidden)
            self._parallel.all_gather(logits)

        replay = _recorded(operations, self._device) if self._device.type == "cuda" else operations
        times = []
        for _ in range(REPEATS + 1):  # the first one warms up
            began_s = time.perf_counter()
            for _ in range(REPLAYS):
                replay()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append((time.perf_counter() - began_s) / REPLAYS)
        return statistics.median(times[1:])

    def _zeros(self, num_rows: int, num_columns: int) -> torch.Tensor:
        return torch.zeros(num_rows, num_columns, dtype=self._dtype, device=self._device)


def _recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Returns what replays `work` as a CUDA graph."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        work()  # what a first use allocates must be there before recording
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay

"""What a step costs beside the model: scheduling, batching, sampling, telling.

The scheduler of a decode node runs a real `ModelRunner`, as the shell drives it, without sockets
and threads. Prompts are taken for computed, since only steps that decode are looked at. What a step
takes beside the model's own forward pass is overhead: planning it, building its tensors, choosing
tokens, accounting for them, encoding the message that reports them, and the node's load.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.engines.cells import WARM_UP_STEPS, Cell
from decode.answers import Answers
from engine.batches.sequence import Sampled
from engine.cache.prefix_cache import PrefixCache
from engine.steps.runner import ModelRunner
from node.core.instructions import SendMessage
from node.core.scheduler import Scheduler, SchedulerLimits
from protocol.hashing import PageHasher, token_bytes
from protocol.ids import Addresses, Attempt, Node
from protocol.messages import Generate, encode
from protocol.namespace import SHARED
from protocol.sampling import Sampling

SAMPLED = Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=7)
GREEDY = Sampling(temperature=0.0)
PENALISED = Sampling(
    temperature=0.0, frequency_penalty=0.5, presence_penalty=0.5, repetition_penalty=1.2
)


@dataclass(frozen=True)
class Overhead:
    """Shares of a step that are not the model's; medians."""

    share: float
    """With greedy requests."""
    sampled_share: float
    """With requests that draw from the top_p of their top_k tokens."""
    penalised_share: float
    """With greedy requests that have all penalties."""


def measure_overhead(runner: ModelRunner, cell: Cell) -> Overhead:
    return Overhead(*(_share(runner, cell, sampling) for sampling in (GREEDY, SAMPLED, PENALISED)))


def _share(runner: ModelRunner, cell: Cell, sampling: Sampling) -> float:
    loop = _Loop(runner, cell, sampling)
    with _forward_times(runner) as forward_s:
        shares = []
        for _ in range(WARM_UP_STEPS + cell.num_steps):
            forward_s.clear()
            started = time.perf_counter()
            loop.step()
            step_s = time.perf_counter() - started
            shares.append(1 - sum(forward_s) / step_s)
    loop.end()
    return statistics.median(shares[WARM_UP_STEPS:])


class _Loop:
    """`batch` running answers of a decode node, their contexts there already."""

    def __init__(self, runner: ModelRunner, cell: Cell, sampling: Sampling) -> None:
        self._runner = runner
        hasher = PageHasher("bench", runner.layout)
        limits = SchedulerLimits(
            chunk_tokens=cell.num_tokens, max_running=cell.batch, max_waiting=cell.batch
        )
        cache = PrefixCache(runner.kv_cache.num_pages, runner.layout.page_size)
        self._scheduler = Scheduler(
            "decode", Node("d0", 1), Addresses("", ("",)), cache, hasher, limits, [Answers]
        )
        chance = random.Random(7)
        for i in range(cell.batch):
            prompt = [chance.randrange(3, runner.config.vocab_size) for _ in range(cell.context)]
            self._scheduler.handle(
                _request(f"r{i}", prompt, sampling, cell.max_length - cell.context + 1),
                time.monotonic(),
            )
        self._sequence_ids: list[int] = []
        # A step takes few prompts at once, so that the first ones are answered sooner.
        while len(self._sequence_ids) < cell.batch:
            slices, _ = self._scheduler.next_batch(time.monotonic())
            assert len(slices) > len(self._sequence_ids), "the pool holds all prompts of a cell"
            runner.states.feed(slices)
            self._sequence_ids = [part.sequence_id for part in slices]
            self._scheduler.finish([Sampled((prompt[0],))] * len(slices), time.monotonic())

    def step(self) -> None:
        """Does what `NodeShell.run` does in a step."""
        slices, _ = self._scheduler.next_batch(time.monotonic())
        sampled = self._runner.start(slices).sampled()
        for instruction in self._scheduler.finish(sampled, time.monotonic()):
            if isinstance(instruction, SendMessage):
                encode(instruction.message)
        self._scheduler.load()

    def end(self) -> None:
        for sequence_id in self._sequence_ids:
            self._runner.end_sequence(sequence_id)


def _request(name: str, prompt: list[int], sampling: Sampling, max_new_tokens: int) -> Generate:
    return Generate(
        attempt=Attempt(name, 1),
        tokens=token_bytes(prompt),
        namespace=SHARED,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        end_token_ids=[],
        prefill_node=None,
        prefill_address="",
        reply_address="coordinator",
    )


@contextmanager
def _forward_times(runner: ModelRunner) -> Iterator[list[float]]:
    """Collects the seconds of every forward pass of the model, which must run on a CPU."""
    seconds: list[float] = []
    started = 0.0

    def begin(*_: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def end(*_: Any) -> None:
        seconds.append(time.perf_counter() - started)

    hooks = [
        runner.model.register_forward_pre_hook(begin),
        runner.model.register_forward_hook(end),
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()

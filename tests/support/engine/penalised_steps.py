"""Answers with penalties, computed in steps that fail or run ahead, held against a plain loop."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import torch

from engine.batches.sequence import Sampled, Slice
from engine.batches.sequence import Sequence as TokenSequence
from engine.batches.step import OnLayer, Step
from engine.build import EngineOptions, load_model_runner
from engine.cache.prefix_cache import PrefixCache
from engine.steps.runner import ModelRunner
from node.shell.steps import Steps
from protocol.sampling import Sampling
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences, prompt_of
from tests.support.engine.sampling_reference import adjusted, chosen
from tests.support.models.families import save_random_model

VOCAB_SIZE = 199
NUM_PAGES = 40
NUM_NEW = 9
SAMPLINGS = (
    Sampling(temperature=0.0, frequency_penalty=1.1, repetition_penalty=1.4),
    Sampling(temperature=0.0, presence_penalty=-2.0),  # attracts what it has said
    Sampling(temperature=0.0, frequency_penalty=-1.5),
    Sampling(temperature=0.0),
)
PROMPTS = [prompt_of(n, VOCAB_SIZE) for n in (37, 5, 20, 11)]
KINDS = ("before", "after", "late")
"""When a step fails: before the runner does anything, after it fed the states, when it is read."""
Faults = Mapping[int, str]
"""How starts fail, by their number among those of several slices."""


def load_runner(path: Path) -> ModelRunner:
    """Saves a random model at `path` and loads it in the size of these tests."""
    torch.set_num_threads(1)
    save_random_model("llama3", path)
    return load_model_runner(path, EngineOptions("float32", PAGE_SIZE), lambda _: NUM_PAGES, CPU)


@cache
def expected(runner: ModelRunner, number: int) -> list[int]:
    """The answer to prompt `number`, token by token, each from the logits of all before it."""
    tokens, sampling = list(PROMPTS[number]), sampling_of(number)
    for _ in range(NUM_NEW):
        logits = Sequences(runner).logits(tokens).tolist()
        logits = adjusted(logits, sampling, len(tokens), tokens)
        tokens.append(chosen(logits, sampling, len(tokens)))
    return tokens[len(PROMPTS[number]) :]


def sampling_of(number: int) -> Sampling:
    return msgspec.structs.replace(SAMPLINGS[number], prompt_length=len(PROMPTS[number]))


@dataclass(frozen=True)
class LateStep:
    """Was computed, and fails when it is read. The step behind it has its tokens all the same."""

    inner: Step

    @property
    def slices(self) -> Sequence[Slice]:
        return self.inner.slices

    @property
    def has_compiled(self) -> bool:
        return False

    def sampled(self) -> list[Sampled | None]:
        raise ValueError("nobody knows")


class FaultyRunner:
    """Runs ahead, as on a GPU, and fails at some of its starts."""

    runs_ahead = True
    num_compiles = 0

    def __init__(self, inner: ModelRunner, faults: Faults) -> None:
        self._inner, self._faults = inner, faults
        self._numbers = itertools.count()
        self.num_failed = self.num_ahead = 0

    def start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None = None, after: Step | None = None
    ) -> Step:
        is_alone = len(slices) == 1  # as a step that failed is computed again
        fault = None if is_alone else self._faults.get(next(self._numbers))
        self.num_failed += fault is not None
        self.num_ahead += any(part.follows is not None for part in slices)
        if fault == "before":
            raise ValueError(fault)
        inner_after = after.inner if isinstance(after, LateStep) else after
        step = self._inner.start(slices, on_layer, inner_after)
        if fault == "after":
            raise ValueError(fault)
        return LateStep(step) if fault == "late" else step

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        self._inner.copy_pages(sources, destinations)

    def end_sequence(self, sequence_id: int) -> None:
        self._inner.end_sequence(sequence_id)


class Node:
    """Computes all prompts side by side, as a node does whose device may run ahead."""

    def __init__(self, runner: FaultyRunner, chunk: int, runs_ahead: bool) -> None:
        self._steps = Steps(runner, itertools.count().__next__)
        self._cache = PrefixCache(NUM_PAGES, PAGE_SIZE)
        self._chunk, self._runs_ahead = chunk, runs_ahead
        self._ids = itertools.count()
        self._planned: list[list[tuple[int, TokenSequence, Slice]]] = []
        self.answers = [list[int]() for _ in PROMPTS]
        self.running = {number: self._begin(number) for number in range(len(PROMPTS))}

    def _begin(self, number: int) -> TokenSequence:
        tokens = PROMPTS[number] + self.answers[number]
        lease = self._cache.acquire([], -(-(len(PROMPTS[number]) + NUM_NEW) // PAGE_SIZE), 0.0)
        assert lease is not None
        return TokenSequence(tokens, lease, sampling_of(number), 0, next(self._ids))

    def preempt(self, number: int) -> None:
        """It begins anew, with what it has answered, also if a step of it is under way."""
        if number in self.running:
            self._end(number)
            self.running[number] = self._begin(number)

    def step(self) -> None:
        plan = [
            (number, sequence, sequence.next_slice(self._chunk, place))
            for place, (number, sequence) in enumerate(
                (number, sequence)
                for number, sequence in self.running.items()
                if len(sequence.tokens) + sequence.is_sampling < len(PROMPTS[number]) + NUM_NEW
            )
        ]
        if plan:
            self._planned.append(plan)
            self._steps.start([part for _, _, part in plan], lambda _: None)
        while self._planned and not (plan and self._runs_ahead and self._steps.may_stay):
            self._settle()

    def _settle(self) -> None:
        outcome = self._steps.settle()
        assert not outcome.failed, "nobody fails alone"
        for (number, sequence, part), sampled in zip(
            self._planned.pop(0), outcome.sampled, strict=True
        ):
            if self.running.get(number) is not sequence:
                continue
            sequence.computed(part)
            if sampled is None:
                continue
            assert sequence.samples_next(part)
            self.answers[number] += sampled.tokens
            sequence.tokens.extend(sampled.tokens)
            if len(self.answers[number]) == NUM_NEW:
                self._end(number)

    def _end(self, number: int) -> None:
        sequence = self.running.pop(number)
        self._steps.end_sequence(sequence.sequence_id)
        self._cache.release(sequence.held)


def compute(
    model: ModelRunner,
    faults: Faults,
    chunk: int,
    runs_ahead: bool,
    preempted: Mapping[int, int],
) -> FaultyRunner:
    """Checks all answers. `preempted`: the prompts that begin anew before a step, by its number."""
    runner = FaultyRunner(model, faults)
    node = Node(runner, chunk, runs_ahead)
    for number in itertools.count():
        if number in preempted:
            node.preempt(preempted[number])
        if not node.running:
            break
        assert number < 200, "it does not end"
        node.step()
    node.step()  # whatever is still under way
    assert node.answers == [expected(model, number) for number in range(len(PROMPTS))]
    assert len(model.states) == 0, "a state outlives its sequence"
    return runner

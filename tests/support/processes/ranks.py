"""Rank processes for tests: each computes its part of one model after another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.parallel import connect
from protocol.errors import UserError
from tests.support.engine.driving import CPU, PAGE_SIZE, Sequences
from tests.support.processes.forked import forkserver

ANSWER_S = 120.0


@dataclass(frozen=True)
class Job:
    path: Path
    options: EngineOptions
    size: int
    address: str
    prompts: list[list[int]]
    num_tokens: int


@dataclass(frozen=True)
class Answer:
    tokens: list[list[int]]
    """Greedy ones, for each prompt."""
    logits: torch.Tensor
    """After the last prompt."""
    num_kv_heads: int
    weight_bytes: int
    refusal: str = ""


@contextmanager
def rank_processes(count: int) -> Iterator[list[Connection]]:
    context = forkserver()
    pipes = [context.Pipe() for _ in range(count)]
    processes = [
        context.Process(target=_serve, args=(rank, theirs), daemon=True)
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        yield [ours for ours, _ in pipes]
    finally:
        for process in processes:
            process.kill()  # they hold nothing, and would take seconds to take torch down
            process.join()


def run(ranks: list[Connection], job: Job) -> list[Answer]:
    """What each rank answers."""
    for rank in ranks[: job.size]:
        rank.send(job)
    answers = []
    for rank in ranks[: job.size]:
        assert rank.poll(ANSWER_S), "a rank is silent"
        answers.append(rank.recv())
    return answers


def _serve(rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        job = pipe.recv()
        try:
            pipe.send(_compute(rank, job))
        except UserError as error:
            pipe.send(Answer([], torch.empty(0), 0, 0, refusal=str(error)))


def _compute(rank: int, job: Job) -> Answer:
    parallel = connect(rank, job.size, CPU, job.address, ANSWER_S)
    runner = load_model_runner(job.path, job.options, lambda _: 60, CPU, parallel)
    sequences = Sequences(runner)
    parameters = {p.data_ptr(): p.nbytes for p in runner.model.parameters()}
    return Answer(
        tokens=[sequences.generate(prompt, job.num_tokens, chunk=37) for prompt in job.prompts],
        logits=sequences.logits(job.prompts[-1]),
        num_kv_heads=runner.layout.num_kv_heads,
        weight_bytes=sum(parameters.values()),
    )


def options(context_length: int = 0, load_format: str = "auto") -> EngineOptions:
    return EngineOptions(
        "float32", PAGE_SIZE, load_format=load_format, context_length=context_length
    )

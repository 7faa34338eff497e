"""Measures one peer engine on the GPU, in a process of its own.

    python -m benchmarks.gpu.peer_process NAME

It reads a `PeerTask` as JSON from its standard input and writes a `PeerTimes`, or a `MissingPeer`
that says why there are no times, as the last line of its output.

A peer is driven through its own interface for Python, which takes whole prompts and returns whole
answers. What a step takes is therefore a difference: of answers to the same, cached prompts, with
many tokens and with few.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Protocol

import msgspec

from benchmarks.gpu.plan import GpuPlan

FEW_TOKENS = 8
REPEATS = 3
MEMORY_SHARE = 0.85


class PeerTask(msgspec.Struct, frozen=True):
    """What a peer is to measure."""

    model: str
    """A directory that has a config.json; weights are random."""
    dtype: str
    vocab_size: int
    plan: GpuPlan


class PeerTimes(msgspec.Struct, frozen=True, tag=True):
    """What a peer took. Lists are in the order of the plan."""

    version: str
    prefill_s: list[float]
    step_s: list[float]


class MissingPeer(msgspec.Struct, frozen=True, tag=True):
    """A peer that was not measured."""

    reason: str


class Generator(Protocol):
    """An engine that answers prompts, greedily and with exactly as many tokens as are asked for."""

    def answer(self, prompts: Sequence[list[int]], num_tokens: int) -> None:
        """Returns when all answers are there."""


class Vllm:
    """vLLM with the defaults that it serves with: CUDA graphs and cached prefixes."""

    def __init__(self, task: PeerTask) -> None:
        self._vllm = import_module("vllm")
        self._engine: Any = self._vllm.LLM(
            model=task.model,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=task.dtype,
            max_model_len=task.plan.longest + FEW_TOKENS,
            max_num_seqs=task.plan.largest_batch,
            gpu_memory_utilization=MEMORY_SHARE,
        )

    def answer(self, prompts: Sequence[list[int]], num_tokens: int) -> None:
        sampling = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        self._engine.generate(asked, sampling, use_tqdm=False)


class Sglang:
    """SGLang with the defaults that it serves with: CUDA graphs and cached prefixes."""

    def __init__(self, task: PeerTask) -> None:
        self._engine: Any = import_module("sglang").Engine(
            model_path=task.model,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=task.dtype,
            context_length=task.plan.longest + FEW_TOKENS,
            max_running_requests=task.plan.largest_batch,
            mem_fraction_static=MEMORY_SHARE,
            log_level="error",
        )

    def answer(self, prompts: Sequence[list[int]], num_tokens: int) -> None:
        sampling = {"temperature": 0.0, "max_new_tokens": num_tokens, "ignore_eos": True}
        self._engine.generate(input_ids=list(prompts), sampling_params=sampling)


PEERS: dict[str, Callable[[PeerTask], Generator]] = {"vllm": Vllm, "sglang": Sglang}


def peer_times(
    engine: Generator, task: PeerTask, now: Callable[[], float], name: str = ""
) -> PeerTimes:
    """Measures every prompt and every cell of the task's plan. `now` is a clock in seconds."""
    chance = random.Random(7)

    def prompt(length: int) -> list[int]:
        return [chance.randrange(3, task.vocab_size) for _ in range(length)]

    def seconds(prompts: Sequence[list[int]], num_tokens: int) -> float:
        started = now()
        engine.answer(prompts, num_tokens)
        return now() - started

    prefill_s = []
    for length in task.plan.prompts:
        seconds([prompt(length)], 1)  # the first of its length warms up
        times = [seconds([prompt(length)], 1) for _ in range(task.plan.num_prompts)]
        prefill_s.append(statistics.median(times))
    step_s = []
    for cell in task.plan.decodes:
        prompts = [prompt(context) for context in cell.contexts]
        many = FEW_TOKENS + cell.num_steps
        seconds(prompts, many)  # now their prefixes are cached
        longer, shorter = (
            statistics.median(seconds(prompts, count) for _ in range(REPEATS))
            for count in (many, FEW_TOKENS)
        )
        step_s.append((longer - shorter) / cell.num_steps)
    return PeerTimes(version(name) if name else "", prefill_s, step_s)


def main() -> None:
    """Measures the peer that the command line names."""
    name = sys.argv[1]
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=PeerTask)
    told: PeerTimes | MissingPeer
    if find_spec(name) is None:
        told = MissingPeer(f"{name} is not installed")
    else:
        told = peer_times(PEERS[name](task), task, time.perf_counter, name)
    print("\n" + msgspec.json.encode(told).decode(), flush=True)


if __name__ == "__main__":
    main()

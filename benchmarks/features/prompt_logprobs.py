"""What logprobs of a prompt cost beside computing the prompt alone, in one run.

    .venv/bin/python -m benchmarks.features.prompt_logprobs [--shape NAME] [--tokens N]

Physics: a prompt alone needs the logits of its last row. Its logprobs need those of every row: two
operations for each weight of the head, as for each weight of the layers. So the least ratio is the
head's weights over those of the layers, plus one: 1.08 for Llama 3 8B, 1.27 for SmolLM2 135M.
Reading the logits, and finding the likeliest tokens among them, comes on top. All ways of asking
are timed in turn, in the chunks of a node, and compared by their medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.engines.shapes import SHAPES, save_shape
from benchmarks.machine import machine
from engine.batches.sequence import Sequence
from engine.build import load_model_runner
from engine.cache.prefix_cache import PrefixCache
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from node.config import CPU_CHUNK, GPU_CHUNK
from protocol.sampling import Sampling

PAGE_SIZE = 16
NUM_TOP: Mapping[str, int | None] = {"plain": None, "logprobs": 0, "logprobs and 20 likeliest": 20}
"""What is asked of each position; None: nothing."""


def main() -> None:
    """Prints a line for each way of asking, and last one line of JSON."""
    given = _arguments()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    chunk_tokens = CPU_CHUNK if device.type == "cpu" else GPU_CHUNK
    num_pages = -(-given.tokens // PAGE_SIZE)
    with tempfile.TemporaryDirectory() as directory:
        save_shape(given.shape, Path(directory))
        options = EngineOptions(given.dtype, PAGE_SIZE, load_format="dummy", max_running_requests=1)
        runner = load_model_runner(Path(directory), options, lambda _: num_pages, device)
    chance = random.Random(7)
    prompt = [chance.randrange(3, runner.config.vocab_size) for _ in range(given.tokens)]
    seconds: dict[str, list[float]] = {name: [] for name in NUM_TOP}
    for round_number in range(given.rounds + 1):
        for name, num_top in NUM_TOP.items():
            elapsed_s = prefill_s(runner, prompt, num_top, chunk_tokens)
            if round_number:  # the first one warms up
                seconds[name].append(elapsed_s)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:26} {median * 1e3:9.1f} ms  {median / medians['plain']:5.2f} × plain")
    report = {
        "bench": "prompt_logprobs",
        "machine": machine("torch"),
        "shape": given.shape,
        "dtype": given.dtype,
        "device": given.device,
        "tokens": given.tokens,
        "plain_ms": round(medians["plain"] * 1e3, 2),
        "ratio": round(medians["logprobs"] / medians["plain"], 3),
        "ratio_20": round(medians["logprobs and 20 likeliest"] / medians["plain"], 3),
        "least_ratio": round(1 + head_to_layers(runner), 3),
    }
    print(json.dumps(report))


def prefill_s(
    runner: ModelRunner, prompt: list[int], num_top: int | None, chunk_tokens: int
) -> float:
    """Returns how long one prompt alone takes until everything asked of it is on the host."""
    num_pages = -(-len(prompt) // PAGE_SIZE)
    held = PrefixCache(num_pages, PAGE_SIZE).acquire([], num_pages, 0.0)
    assert held is not None
    sampling = Sampling(temperature=0.0, prompt_length=len(prompt))
    if num_top is not None:
        sampling = Sampling(
            temperature=0.0,
            prompt_length=len(prompt),
            num_top_logprobs=num_top,
            prompt_logprobs_from=0,
        )
    scores_from = 1 if num_top is not None else None
    sequence = Sequence(prompt, held, sampling, 0, 1, scores_from)
    started = time.perf_counter()
    steps = []
    while sequence.has_chunk:
        steps.append(runner.start([sequence.next_slice(chunk_tokens, 0)]))
    for step in steps:
        step.sampled()
    return time.perf_counter() - started


def head_to_layers(runner: ModelRunner) -> float:
    """Returns the weights of the head per weight of the layers."""
    layers = sum(p.numel() for layer in runner.model.layers for p in layer.parameters())
    return runner.config.vocab_size * runner.config.hidden_size / layers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="smollm2-135m", choices=sorted(SHAPES))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

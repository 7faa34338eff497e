"""What hits to the token cost and save, on one core: `python -m benchmarks.features.beginnings`.

All times are CPU time, so that others on the same core cost nothing. Two measurements. The first is
the cache alone: 100,000 prompts have left a page each, so as many pages follow the root of the
tree, and for half of them the first 8 tokens are the same, as with one system prompt. Measured are
`acquire` with `release` of a prompt that finds no whole page, `closest` for it, and a prompt's
whole life in the cache, with its `commit` and `keep_tail` and the evictions that these need.

The physics: `closest` makes a key of up to 16 tokens, 0.5 µs, and bisects 100,000 entries: 17
comparisons of bytes. A page that follows the root is inserted into a sorted list, which moves half
of 800 kB of pointers: 10 to 40 µs, next to a prompt that takes milliseconds.

The second is a node with the embedded model, without sockets: prompts of 16 tokens of which the
first 10 are those of a prompt before them, computed with copies and, in turn, without. Behind them
the time to the first token has a step of 6 tokens in place of one of 16.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from decode.answers import Answers
from engine.build import load_model_runner
from engine.cache.prefix_cache import Beginning, HeldPages, PrefixCache
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from infra.models import EMBEDDED
from node.core.instructions import CopyPages
from node.core.scheduler import Scheduler, SchedulerLimits
from protocol.hashing import PageHasher, token_bytes
from protocol.ids import Addresses, Attempt, Node
from protocol.layout import KVLayout
from protocol.messages import Generate
from protocol.namespace import SHARED
from protocol.sampling import Sampling

PAGE_SIZE = 16
NUM_COMMON = 10
LAYOUT = KVLayout(PAGE_SIZE, num_layers=1, num_kv_heads=1, head_dim=1, dtype="float32")
NUM_ROUNDS = 15
NUM_PROMPTS = 40
"""In each round, each way."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-beginnings", description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=100_000, help="that follow the root")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    figures = {**cache_figures(options.pages), **node_figures()}
    _print(figures)
    report = {
        "bench": "beginnings",
        "pages": options.pages,
        **{name: round(figure, 3) for name, figure in figures.items()},
        "machine": machine("torch", "msgspec"),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


# The cache alone


def cache_figures(num_pages: int) -> dict[str, float]:
    """Returns microseconds, medians and 99th percentiles, by name."""
    chance = random.Random(1)
    hasher = PageHasher("bench", LAYOUT)
    cache = PrefixCache(num_pages + 64, PAGE_SIZE)
    system = _tokens(chance, 8)
    for number in range(num_pages):
        tokens = (system if number % 2 else []) + _tokens(chance, PAGE_SIZE)
        _live(cache, hasher, tokens[:PAGE_SIZE], float(number))
    gc.collect()
    gc.freeze()
    asked = [system + _tokens(chance, PAGE_SIZE) for _ in range(4_000)]
    hashes = [hasher.hashes(tokens) for tokens in asked]
    now = float(num_pages)

    def acquire(number: int) -> None:
        held = cache.acquire(hashes[number], 2, now, SHARED, 0, asked[number])
        assert held is not None and not held.num_cached_pages
        cache.release(held)

    held = cache.acquire([], 2, now, SHARED, 0, asked[0])
    assert held is not None

    def closest(number: int) -> None:
        held.tokens = asked[number]
        found = cache.closest(held, len(asked[number]) - 1, now)
        assert found is not None and found.num_tokens >= len(system)

    figures = {
        **_microseconds("acquire", acquire, range(len(asked))),
        **_microseconds("closest", closest, range(len(asked))),
    }
    cache.release(held)
    life = _microseconds(
        "life", lambda number: _live(cache, hasher, asked[number], now), range(len(asked))
    )
    return figures | life


def _live(cache: PrefixCache, hasher: PageHasher, tokens: list[int], now: float) -> None:
    """A prompt comes, is computed, and leaves its pages in the cache."""
    hashes = hasher.hashes(tokens)
    num_pages = hasher.num_pages(len(tokens))
    held = cache.acquire(hasher.reusable(hashes, len(tokens)), num_pages, now, SHARED, 0, tokens)
    assert held is not None
    cache.closest(held, len(tokens) - 1, now)
    cache.commit(held, hashes, now)
    cache.keep_tail(held, len(tokens), now)
    cache.release(held)
    cache.take_changes()


def _microseconds(
    name: str, call: Callable[[int], None], arguments: Iterable[int]
) -> dict[str, float]:
    times = []
    for argument in arguments:
        started = time.thread_time()
        call(argument)
        times.append((time.thread_time() - started) * 1e6)
    percentiles = statistics.quantiles(times, n=100)
    return {f"{name}_p50_us": percentiles[49], f"{name}_p99_us": percentiles[98]}


# A node


class CopiesNothing(PrefixCache):
    """Finds whole pages only."""

    def closest(self, held: HeldPages, num_reusable: int, now: float) -> Beginning | None:
        return None


def node_figures() -> dict[str, float]:
    """Returns milliseconds to the first token and tokens computed per prompt, both ways."""
    options = EngineOptions("float32", PAGE_SIZE)
    num_pages = NUM_ROUNDS * NUM_PROMPTS * 4
    runner = load_model_runner(EMBEDDED, options, lambda _: num_pages, torch.device("cpu"))
    chance = random.Random(2)
    times: dict[type[PrefixCache], list[float]] = {PrefixCache: [], CopiesNothing: []}
    computed = dict.fromkeys(times, 0)
    for _ in range(NUM_ROUNDS + 1):
        for kind in times:
            node = _Node(runner, kind(num_pages, PAGE_SIZE))
            begin = [_tokens(chance, NUM_COMMON) for _ in range(NUM_PROMPTS)]
            for common in begin:
                node.first_token_s(common + _tokens(chance, PAGE_SIZE - NUM_COMMON))
            before = node.num_computed
            rest = PAGE_SIZE - NUM_COMMON
            times[kind] += [node.first_token_s(common + _tokens(chance, rest)) for common in begin]
            computed[kind] += node.num_computed - before
    num_prompts = (NUM_ROUNDS + 1) * NUM_PROMPTS
    with_copies, without = (statistics.median(t[NUM_PROMPTS:]) * 1e3 for t in times.values())
    return {
        "first_token_with_copies_ms": with_copies,
        "first_token_without_ms": without,
        "ratio": with_copies / without,
        "computed_with_copies": computed[PrefixCache] / num_prompts,
        "computed_without": computed[CopiesNothing] / num_prompts,
    }


class _Node:
    """A decode node's scheduler and runner."""

    def __init__(self, runner: ModelRunner, cache: PrefixCache) -> None:
        self._runner = runner
        limits = SchedulerLimits(chunk_tokens=1024, max_running=8, max_waiting=8)
        hasher = PageHasher("bench", runner.layout)
        addresses = Addresses("", ("",))
        self._scheduler = Scheduler(
            "decode", Node("d0", 1), addresses, cache, hasher, limits, [Answers]
        )
        self._num_asked = 0

    @property
    def num_computed(self) -> int:
        return self._scheduler.load().counters.computed_tokens

    def first_token_s(self, prompt: list[int]) -> float:
        """Returns the CPU seconds from the request to its only token."""
        self._num_asked += 1
        started = time.thread_time()
        self._scheduler.handle(_request(str(self._num_asked), prompt), started)
        slices, instructions = self._scheduler.next_batch(started)
        for instruction in instructions:
            if isinstance(instruction, CopyPages):
                self._runner.copy_pages(instruction.sources, instruction.destinations)
        sampled = self._runner.start(slices).sampled()
        self._scheduler.finish(sampled, time.thread_time())
        return time.thread_time() - started


def _request(name: str, prompt: list[int]) -> Generate:
    return Generate(
        attempt=Attempt(name, 1),
        tokens=token_bytes(prompt),
        namespace=SHARED,
        sampling=Sampling(temperature=0.0),
        max_new_tokens=1,
        end_token_ids=[],
        prefill_node=None,
        prefill_address="",
        reply_address="coordinator",
    )


def _tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(3, 2000) for _ in range(count)]


def _print(figures: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE, title="hits to the token")
    table.add_column("figure")
    table.add_column("", justify="right")
    for name, figure in figures.items():
        table.add_row(name.replace("_", " "), f"{figure:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

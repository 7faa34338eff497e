"""What FP8 pages cost in answers, and save in bytes and time, beside pages of 16 and 32 bits.

    .venv/bin/python -m benchmarks.features.kv_dtype MODEL TEXT [MODEL TEXT …] [--save]

Loss: windows of a text are computed as prompts in float32, in one step each, with pages of each
form. Logits of all positions are compared with those over float32 pages: Kullback-Leibler
divergence, the share of positions with the same likeliest token, and perplexity. Static scales are
calibrated on other windows of the text, as a checkpoint's are: the greatest number seen is 448.

Physics of speed on a CPU: attention of a single token reads its context once, so pages of a quarter
of the bytes take a quarter of the time from memory, if numbers are widened as fast as they come. A
step reads the weights, too, which do not change. A transfer moves pages alone: 130 / 256 of the
bytes of bfloat16 pages with heads of 128. All forms are timed in turn, in one process, and compared
by their medians.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.clusters import page_stream
from benchmarks.machine import machine
from engine.attention.torch_attention import TorchAttention
from engine.batches.batch import Batch
from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.cache.fp8 import GREATEST
from engine.cache.kv_cache import KVCache
from engine.cache.make_cache import make_cache
from engine.kernels.native.build import native_library
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from protocol.layout import FP8, KVLayout, Scales
from protocol.model.tokenizer import load_tokenizer
from protocol.sampling import Sampling

WINDOW, NUM_WINDOWS, PAGE_SIZE = 1024, 4, 16
CELLS = ((1, 2048), (8, 512), (8, 2048))
"""Sequences, and the tokens of each, of the decode steps that are timed."""
PROMPT_TOKENS, PROMPT_CONTEXT = 512, 2048
REPEATS = 9
TRANSFER_PAGES = 256
TRANSFER_ROUNDS = 3
RESULTS = Path(__file__).parents[1] / "results" / "kv-dtype.json"
CPU, GREEDY = torch.device("cpu"), Sampling(temperature=0.0)


class CastingCache(KVCache):
    """Pages of 16 bits under a model that is computed in float32."""

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        dtype = self.pool.dtype
        super().write(layer, key.to(dtype), value.to(dtype), slots)


def main() -> None:
    """Prints tables and, last, a line of JSON."""
    parser = argparse.ArgumentParser(description="What FP8 pages cost and save.")
    parser.add_argument("pairs", nargs="+", type=Path, help="model directories, each with a text")
    parser.add_argument("--save", action="store_true", help=f"write the JSON line to {RESULTS}")
    given = parser.parse_args()
    if len(given.pairs) % 2:
        parser.error("each model directory needs a text behind it")
    torch.set_num_threads(1)
    console, models = Console(width=110), {}
    for path, text in zip(given.pairs[::2], given.pairs[1::2], strict=True):
        with torch.inference_mode():
            models[path.name] = _model(path, text)
        for table in _tables(path.name, models[path.name]):
            console.print(table)
    report = {"bench": "kv-dtype", "machine": machine("torch"), "models": models}
    report["transfer"] = _transfers()
    line = json.dumps(report)
    if given.save:
        RESULTS.write_text(line + "\n", encoding="utf-8")
    print(line)


def _model(path: Path, text: Path) -> dict[str, Any]:
    options = EngineOptions("float32", PAGE_SIZE)
    num_pages = max(n * -(-(context + 1) // PAGE_SIZE) for n, context in CELLS)
    runner = load_model_runner(path, options, lambda _: num_pages, CPU)
    encoded = (
        Tokenizer.from_str(load_tokenizer(path).json_text)
        .encode(text.read_text(encoding="utf-8"))
        .ids
    )
    windows = [encoded[i : i + WINDOW] for i in range(0, len(encoded) - WINDOW + 1, WINDOW)]
    if len(windows) < 2:
        raise SystemExit(f"{text} has {len(encoded)} tokens; {2 * WINDOW} are needed")
    return {
        "text": text.name,
        "loss": _loss(runner, windows[: NUM_WINDOWS + 1]),
        "pages": {name: _page_sizes(layout) for name, layout in _layouts(runner).items()},
        "steps": _steps(runner),
    }


def _layouts(runner: ModelRunner) -> dict[str, KVLayout]:
    """Returns the layouts whose sizes and steps are compared."""

    def of(dtype: str, scales: Scales = "") -> KVLayout:
        return msgspec.structs.replace(runner.layout, dtype=dtype, scales=scales)

    return {
        "float32": of("float32"),
        "bfloat16": of("bfloat16"),
        "fp8 static": of(FP8, "static"),
        "fp8 token": of(FP8, "token"),
    }


def _page_sizes(layout: KVLayout) -> dict[str, int]:
    return {"page_bytes": layout.page_bytes, "pages_per_gib": (1 << 30) // layout.page_bytes}


def _loss(runner: ModelRunner, windows: list[list[int]]) -> dict[str, dict[str, float]]:
    """Compares the forms on all windows but the last, on which static scales are calibrated."""
    layouts, num_pages = _layouts(runner), WINDOW // PAGE_SIZE
    plain = KVCache(layouts["float32"], num_pages, CPU)
    _logits(runner, plain, windows[-1])
    greatest = plain.pool.abs().amax((1, 3, 5)) / GREATEST  # [layers, 2, kv_heads]

    def static(scales: Tensor) -> KVCache:
        return make_cache(layouts["fp8 static"], num_pages, CPU, scales)

    caches: dict[str, KVCache] = {
        "float32": plain,
        "bfloat16": CastingCache(layouts["bfloat16"], num_pages, CPU),
        "fp8, scale 1": static(torch.ones_like(greatest)),
        "fp8, calibrated per tensor": static(
            greatest.amax(-1, keepdim=True).expand_as(greatest).contiguous()
        ),
        "fp8, calibrated per head": static(greatest),
        "fp8, per token and head": make_cache(layouts["fp8 token"], num_pages, CPU),
    }
    losses: dict[str, list[tuple[float, float, float]]] = {name: [] for name in caches}
    for window in windows[:-1]:
        targets = torch.tensor(window[1:])
        expected = _logits(runner, plain, window)[:-1].log_softmax(-1)
        for name, cache in caches.items():
            got = _logits(runner, cache, window)[:-1].log_softmax(-1)
            divergence = (expected.exp() * (expected - got)).sum(-1).mean()
            agree = (expected.argmax(-1) == got.argmax(-1)).float().mean()
            nll = -got.gather(1, targets[:, None]).mean()
            losses[name].append((float(nll), float(divergence), float(agree)))
    return {
        name: {
            "perplexity": _figure(math.exp(statistics.mean(nll for nll, _, _ in each)), 6),
            "kl": _figure(statistics.mean(kl for _, kl, _ in each), 3),
            "same_top": _figure(statistics.mean(top for _, _, top in each), 4),
        }
        for name, each in losses.items()
    }


def _logits(runner: ModelRunner, cache: KVCache, tokens: list[int]) -> Tensor:
    """Returns the logits of every position, [tokens, vocab]."""
    pages = list(range(-(-len(tokens) // PAGE_SIZE)))
    batch = Batch.build([Slice(tokens, 0, pages, None)], PAGE_SIZE, CPU)
    every = replace(batch, sample_rows=torch.arange(len(tokens)))
    return runner.model(every, cache, TorchAttention())


def _steps(runner: ModelRunner) -> dict[str, dict[str, float]]:
    """Times decode steps, their attention alone, and a prompt's chunk over a context."""
    layouts = _layouts(runner)
    caches = {
        name: make_cache(layouts[name], runner.kv_cache.num_pages, CPU, library=native_library())
        for name in ("float32", "fp8 token")
    }
    for cache in caches.values():
        cache.pool.copy_(torch.randn(cache.pool.shape).to(cache.pool.dtype))
        if cache.layout.scales:
            cache.storage[..., cache.layout.layer_value_bytes :] = 0x2C  # about 0.07 in float16
    steps = {}
    for num, context in CELLS:
        batch = _batch([(context, 1)] * num)
        steps[f"decode {num} × {context}"] = _in_turn(caches, _step(runner, batch))
        steps[f"attention {num} × {context}"] = _in_turn(caches, _attention(runner, batch))
    batch = _batch([(PROMPT_CONTEXT - PROMPT_TOKENS, PROMPT_TOKENS)])
    name = f"{PROMPT_TOKENS} prompt tokens on {PROMPT_CONTEXT - PROMPT_TOKENS}"
    steps[name] = _in_turn(caches, _step(runner, batch))
    return steps


def _batch(parts: list[tuple[int, int]]) -> Batch:
    """Returns a batch of (tokens before, new tokens), on pages in no order."""
    counts = [-(-(start + new) // PAGE_SIZE) for start, new in parts]
    pages = list(range(sum(counts)))
    random.Random(7).shuffle(pages)
    slices = []
    for (start, new), count in zip(parts, counts, strict=True):
        slices.append(Slice([5] * new, start, pages[:count], GREEDY))
        pages = pages[count:]
    return Batch.build(slices, PAGE_SIZE, CPU)


def _step(runner: ModelRunner, batch: Batch) -> Callable[[KVCache], object]:
    return lambda cache: runner.model(batch, cache, runner.attention)


def _attention(runner: ModelRunner, batch: Batch) -> Callable[[KVCache], object]:
    config = runner.config
    query = torch.randn(len(batch.positions), config.num_heads, config.head_dim)
    form = runner.model.layers[0].attention.form

    def attend(cache: KVCache) -> None:
        for layer in range(config.num_layers):
            runner.attention.forward(query, layer, cache, batch, form)

    return attend


def _in_turn(caches: Mapping[str, KVCache], call: Callable[[KVCache], object]) -> dict[str, float]:
    """Returns the median milliseconds with each cache, and the last one's share of the first's."""
    times: dict[str, list[float]] = {name: [] for name in caches}
    for turn in range(REPEATS + 1):
        for name, cache in caches.items():
            started = time.perf_counter()
            call(cache)
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - started) * 1e3)
    medians = {name: _figure(statistics.median(each)) for name, each in times.items()}
    first, *_, last = medians.values()
    return medians | {"ratio": _figure(last / first, 3)}


def _transfers() -> dict[str, dict[str, float]]:
    """Times 4,096 tokens of Llama-3-8B's pages of both forms over each transport, in turn."""
    result = {}
    for transport in ("tcp", "shm"):
        times: dict[str, list[float]] = {"llama-3-8b": [], "llama-3-8b, FP8 pages": []}
        for _ in range(TRANSFER_ROUNDS):
            for shape, each in times.items():
                (stream, _) = page_stream.measure(transport, shape, [TRANSFER_PAGES], REPEATS)
                moved = TRANSFER_PAGES * page_stream.SHAPES[shape].page_bytes
                each.append(moved / stream.rate * 1e3)
        half, fp8 = (statistics.median(each) for each in times.values())
        before, after = (page_stream.SHAPES[shape].page_bytes for shape in times)
        result[transport] = {
            "bfloat16_ms": _figure(half),
            "fp8_ms": _figure(fp8),
            "time_ratio": _figure(fp8 / half, 3),
            "bytes_ratio": _figure(after / before, 4),
        }
    return result


def _figure(value: float, digits: int = 4) -> float:
    """Returns `value` with so many significant digits."""
    return float(f"{value:.{digits}g}")


def _tables(name: str, figures: Mapping[str, Any]) -> list[Table]:
    tables = []
    for title in ("loss", "pages", "steps"):
        table = Table(title=f"{name}: {title}", box=box.SIMPLE)
        columns = list(next(iter(figures[title].values())))
        for heading in ("", *columns):
            table.add_column(heading, justify="right" if heading else "left")
        for row, cells in figures[title].items():
            table.add_row(row, *(str(cells[column]) for column in columns))
        tables.append(table)
    return tables


if __name__ == "__main__":
    main()

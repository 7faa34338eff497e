"""Where a step's time goes on one GPU: each kernel of a layer alone, over what it cannot be faster
than, and attention with other shapes of programs.

    python -m benchmarks.gpu.kernels [--only-pages] [--out FILE]

Physics: a matrix product of few rows reads its weight once, attention of single tokens the K and V
of their contexts; over the copy rate, that is their floor. Kernels of a few rows move next to
nothing, so their time is what a kernel costs as such. Calls are recorded in a CUDA graph, over
several layers, so that nothing comes from the cache and the host does not count. Llama-3-8B's
shape in bfloat16. About a minute.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.engines.floor import MachineRates, measure_rates
from benchmarks.engines.report import rounded
from benchmarks.gpu.plan import UNEQUAL
from benchmarks.machine import machine
from engine.attention.attention_backends import make_attention
from engine.attention.backend import AttentionBackend, AttentionForm
from engine.batches.batch import Batch
from engine.batches.sequence import Slice
from engine.cache.kv_cache import KVCache
from engine.cache.make_cache import make_cache
from engine.kernels.base import HeadShape, Kernels, Rotation
from protocol.layout import FP8, KVLayout, Scales

HEADS = HeadShape(num_heads=32, num_kv_heads=8, head_dim=128)
HIDDEN, INNER = 4096, 14_336
LAYERS = 16
PAGE_SIZE = 16
LINEARS = {
    "qkv": (6144, HIDDEN),
    "out": (HIDDEN, HIDDEN),
    "gate and up": (2 * INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}
ROWS = (1, 2, 4, 8, 32, 128)
CONTEXTS: dict[str, Sequence[int]] = {
    "1 × 2k": [2080],
    "8 × 2k": [2080] * 8,
    "32 × 2k": [2080] * 32,
    "128 × 2k": [2080] * 128,
    "1 × 32k": [32_768],
    "32 × 300 + 12k": UNEQUAL,
}
PROMPTS = (512, 2048, 4096)
FORM = AttentionForm(HEADS.head_dim**-0.5)
REPLAYS = 20
CUDA = torch.device("cuda")
DTYPE = torch.bfloat16


def main() -> None:
    """Measures on the first CUDA device; prints a table and, last, a line of JSON."""
    parser = argparse.ArgumentParser(description="Kernels of a layer on one GPU.")
    parser.add_argument("--out", type=Path, help="write the JSON line here, too")
    parser.add_argument(
        "--only-pages", action="store_true", help="attention over pages of each form, nothing else"
    )
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; run it on a machine that has one")
    rates = measure_rates(DTYPE, CUDA)
    torch.cuda.empty_cache()
    with torch.inference_mode():
        rows = _forms_of_pages(rates)
        if not given.only_pages:
            rows += [*_linears(rates.copy_bytes_s), *_small_kernels(), *_attention(rates)]
    table = Table(title="kernels of one layer", box=box.SIMPLE)
    for heading in ("kernel", "size", "variant", "µs", "÷ floor"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row["kernel"], row["size"], row["variant"], f"{row['us']:.1f}", str(row["vs_floor"])
        )
    Console(width=110).print(table)
    gpu = {"gpu": torch.cuda.get_device_name(CUDA)}
    line = json.dumps(
        {"bench": "kernels", "machine": machine("torch", "triton") | gpu, "rows": rows}
    )
    if given.out is not None:
        given.out.write_text(line + "\n", encoding="utf-8")
    print(line)


def _row(kernel: str, size: str, variant: str, seconds: float, floor_s: float) -> dict[str, Any]:
    ratio = rounded(seconds / floor_s, 3) if floor_s else None
    us = rounded(seconds * 1e6)
    return {"kernel": kernel, "size": size, "variant": variant, "us": us, "vs_floor": ratio}


def _linears(copy_bytes_s: float) -> list[dict[str, Any]]:
    """Measures the matrix products, each with `LAYERS` weights in turn."""
    rows = []
    for name, (num_out, num_in) in LINEARS.items():
        weights = torch.randn(LAYERS, num_out, num_in, device=CUDA, dtype=DTYPE)
        floor_s = 2 * num_out * num_in / copy_bytes_s
        for num_rows in ROWS:
            x = torch.randn(num_rows, num_in, device=CUDA, dtype=DTYPE)
            seconds = replayed_seconds([partial(F.linear, x, weight) for weight in weights])
            rows.append(_row(name, f"{num_rows} rows", "cuBLAS", seconds, floor_s))
    return rows


def _small_kernels() -> list[dict[str, Any]]:
    """Measures what stands between products, with and without dependent launches."""
    from engine.kernels.triton_kernels import TritonKernels

    rows = []
    for is_dependent in (False, True):
        variant = "dependent" if is_dependent else "plain"
        for num_rows in ROWS:
            for name, call in _small_calls(TritonKernels(is_dependent), num_rows).items():
                seconds = replayed_seconds([call] * LAYERS)
                rows.append(_row(name, f"{num_rows} rows", variant, seconds, 0.0))
    return rows


def _small_calls(kernels: Kernels, num_rows: int) -> dict[str, Callable[[], object]]:
    """Returns a call of each kernel with random rows."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=CUDA, dtype=DTYPE)

    layout = KVLayout(PAGE_SIZE, 1, HEADS.num_kv_heads, HEADS.head_dim, "bfloat16")
    cache = KVCache(layout, num_rows, CUDA)
    turn = normal(num_rows, 1, HEADS.head_dim)
    slots = torch.arange(num_rows, device=CUDA) * 2 * PAGE_SIZE
    qkv, x = normal(num_rows, LINEARS["qkv"][0]), normal(num_rows, HIDDEN)
    return {
        "norm": partial(kernels.add_rms_norm, x, x.clone(), normal(HIDDEN), 1e-5),
        "activation": partial(kernels.activate_and_mul, normal(num_rows, 2 * INNER), "silu"),
        "heads": partial(kernels.heads, qkv, HEADS, None, Rotation(turn, turn), 0, cache, slots),
    }


def _attention(rates: MachineRates) -> list[dict[str, Any]]:
    """Measures attention of single tokens and of prompts with programs of several shapes."""
    from engine.attention.triton_attention import PromptTuning, TritonAttention
    from engine.attention.triton_singles import SinglesTuning

    processors = torch.cuda.get_device_properties(CUDA).multi_processor_count
    singles = [
        SinglesTuning(programs, stages, registers, is_dependent=True)
        for registers in (128, 255)
        for programs in (3, 4)
        for stages in (2, 3, 5)
    ]
    prompts = [
        PromptTuning(rows, keys, warps, stages)
        for rows, keys, warps, stages in (
            (64, 64, 4, 2),
            (64, 64, 4, 3),
            (64, 128, 4, 2),
            (128, 64, 8, 2),
            (128, 128, 8, 2),
        )
    ]
    layout = KVLayout(PAGE_SIZE, LAYERS, HEADS.num_kv_heads, HEADS.head_dim, "bfloat16")
    num_pages = max(sum(map(layout.num_pages, contexts)) for contexts in CONTEXTS.values())
    cache = KVCache(layout, num_pages, CUDA)
    cache.pool.normal_()
    rows = []
    for label, contexts in CONTEXTS.items():
        batch = _batch([(context - 1, 1) for context in contexts], layout)
        kv_bytes = sum(contexts) * 4 * HEADS.num_kv_heads * HEADS.head_dim
        for tuning in singles:
            seconds = _attention_s(TritonAttention(processors, tuning), cache, batch)
            floor_s = kv_bytes / rates.copy_bytes_s
            rows.append(_row("attention", label, _told(tuning), seconds, floor_s))
    backends: dict[str, AttentionBackend] = {
        _told(tuning): TritonAttention(processors, None, tuning) for tuning in prompts
    }
    chosen = make_attention("auto", False, layout, CUDA)
    backends[chosen.name] = chosen
    for length in PROMPTS:
        batch = _batch([(0, length)], layout)
        flops = 4 * HEADS.num_heads * HEADS.head_dim * length * (length + 1) / 2
        for name, backend in backends.items():
            seconds = _attention_s(backend, cache, batch)
            rows.append(_row("prompt", str(length), name, seconds, flops / rates.matmul_flop_s))
    return rows


def _forms_of_pages(rates: MachineRates) -> list[dict[str, Any]]:
    """Measures attention over pages of bfloat16, and over those of FP8 with both kinds of scales;
    the floor is the time to read the pages of the contexts."""
    forms: tuple[tuple[str, Scales], ...] = (("bfloat16", ""), (FP8, "static"), (FP8, "token"))
    rows = []
    for dtype, scales in forms:
        layout = KVLayout(PAGE_SIZE, LAYERS, HEADS.num_kv_heads, HEADS.head_dim, dtype, scales)
        num_pages = max(sum(map(layout.num_pages, contexts)) for contexts in CONTEXTS.values())
        static = torch.ones(LAYERS, 2, HEADS.num_kv_heads) if scales == "static" else None
        cache = make_cache(layout, num_pages, CUDA, static)
        cache.storage.fill_(0x38)  # 1.0 in eight bits
        backend = make_attention("triton", False, layout, CUDA)
        variant = f"{dtype} {scales}".strip()
        for label, contexts in CONTEXTS.items():
            batch = _batch([(context - 1, 1) for context in contexts], layout)
            floor_s = sum(contexts) * layout.layer_page_bytes / PAGE_SIZE / rates.copy_bytes_s
            seconds = _attention_s(backend, cache, batch)
            rows.append(_row("attention by pages", label, variant, seconds, floor_s))
        for length in PROMPTS:
            seconds = _attention_s(backend, cache, _batch([(0, length)], layout))
            rows.append(_row("prompt by pages", str(length), variant, seconds, 0.0))
        del cache
    return rows


def _told(tuning: Any) -> str:
    return " ".join(str(value) for value in asdict(tuning).values())


def _batch(parts: Sequence[tuple[int, int]], layout: KVLayout) -> Batch:
    """Returns a batch of (tokens before, new tokens), on pages in no order."""
    pages = list(range(sum(layout.num_pages(start + new) for start, new in parts)))
    random.Random(7).shuffle(pages)
    slices = []
    for start, new in parts:
        count = layout.num_pages(start + new)
        slices.append(Slice([1] * new, start, pages[:count], None))
        del pages[:count]
    return Batch.build(slices, layout.page_size, CUDA)


def _attention_s(backend: AttentionBackend, cache: KVCache, batch: Batch) -> float:
    num_rows = len(batch.positions)
    query = torch.randn(num_rows, HEADS.num_heads, HEADS.head_dim, device=CUDA, dtype=DTYPE)

    def call(layer: int) -> Callable[[], Tensor]:
        return lambda: backend.forward(query, layer, cache, batch, FORM)

    return replayed_seconds([call(layer) for layer in range(LAYERS)])


def replayed_seconds(calls: Sequence[Callable[[], object]]) -> float:
    """Returns the median seconds of one of `calls`, which are recorded together and replayed."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times)


if __name__ == "__main__":
    main()

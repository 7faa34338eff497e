"""Measures the engine on one CUDA device: prompts and decode steps against the floor, and beside
peers on the same card in the same run.

Weights are random, in the shape of a model: time depends on none. A step is timed twice: strictly
one after the other, and with one step under way, as a node runs them; the latter is what counts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.engines.cells import Cell
from benchmarks.engines.floor import MachineRates, decode_work, measure_rates, prefill_work
from benchmarks.engines.ours import Ours
from benchmarks.engines.shapes import SHAPES, save_shape
from benchmarks.gpu.peer_process import PeerTask
from benchmarks.gpu.peers import run_peers
from benchmarks.gpu.plan import DecodeCell, GpuPlan
from benchmarks.gpu.report import DecodeRow, GpuReport, Peers, PrefillRow
from benchmarks.machine import machine
from engine.build import load_model_runner
from engine.model.config import ModelConfig
from engine.options import EngineOptions
from protocol.layout import KVLayout


def measure_shape(
    shape: str,
    options: EngineOptions,
    plan: GpuPlan,
    chunk_tokens: int,
    peer_names: Sequence[str],
    peer_paths: Mapping[str, str],
    console: Console,
) -> GpuReport:
    """Measures our engine and the peers. Needs a CUDA device with room for the weights and the
    largest cell; peers come first, while the device is empty."""
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory() as directory:
        save_shape(shape, Path(directory))
        with _phase("peers", console):
            task = PeerTask(directory, options.dtype, SHAPES[shape]["vocab_size"], plan)
            peers = run_peers(peer_names, peer_paths, task, console)
        report = measure_device(
            Path(directory), options, device, plan, chunk_tokens, console, peers
        )
    names = {"gpu": torch.cuda.get_device_name(device), "shape": shape}
    return replace(report, notes={"machine": machine("torch") | names, **report.notes})


def measure_device(
    model: Path,
    options: EngineOptions,
    device: torch.device,
    plan: GpuPlan,
    chunk_tokens: int,
    console: Console,
    peers: Peers,
) -> GpuReport:
    """Measures our engine in every prompt and every cell of the plan."""
    with _phase("rates of the device", console):
        rates = measure_rates(getattr(torch, options.dtype), device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    console.print(
        f"copy {rates.copy_bytes_s / 1e9:.0f} GB/s, matmul {rates.matmul_flop_s / 1e12:.2f} TFLOP/s"
    )
    options = replace(options, max_running_requests=plan.largest_batch, context_length=plan.longest)
    with _phase("loading and recording", console):
        runner = load_model_runner(
            model, options, lambda layout: num_pages_of_plan(plan, layout), device
        )
    console.print(f"attention: {runner.attention.name}")
    engine, config, layout = Ours(runner, chunk_tokens), runner.config, runner.layout
    with _phase("prefill", console):
        prefills = [_prefill(engine, n, plan, config, layout, rates) for n in plan.prompts]
    with _phase("decode", console):
        decodes = [_decode(engine, cell, config, layout, rates) for cell in plan.decodes]
    notes = {
        "dtype": layout.dtype,
        "attention": runner.attention.name,
        "chunk_tokens": chunk_tokens,
        "copy_bytes_s": round(rates.copy_bytes_s),
        "matmul_flop_s": round(rates.matmul_flop_s),
    }
    return GpuReport(decodes, prefills, peers, notes)


def num_pages_of_plan(plan: GpuPlan, layout: KVLayout) -> int:
    """Returns the pages of a pool that holds any one part of the plan."""
    alone = [layout.num_pages(num_tokens) for num_tokens in plan.prompts]
    return max([*alone, *(_num_pages(cell, layout) for cell in plan.decodes)])


def _num_pages(cell: DecodeCell, layout: KVLayout) -> int:
    grown = cell.longest - max(cell.contexts)
    return sum(layout.num_pages(context + grown) for context in cell.contexts)


def _prefill(
    engine: Ours,
    num_tokens: int,
    plan: GpuPlan,
    config: ModelConfig,
    layout: KVLayout,
    rates: MachineRates,
) -> PrefillRow:
    cell = Cell(1, num_tokens, 0)
    engine.prefill_s(cell)
    seconds = statistics.median(engine.prefill_s(cell) for _ in range(plan.num_prompts))
    floor_s = prefill_work(config, layout.dtype, 1, num_tokens).floor_s(rates)
    return PrefillRow(num_tokens, seconds, floor_s)


def _decode(
    engine: Ours, cell: DecodeCell, config: ModelConfig, layout: KVLayout, rates: MachineRates
) -> DecodeRow:
    work = decode_work(config, layout.dtype, cell.batch, cell.mean_context)
    ahead_s, strict_s = (
        statistics.median(measure(cell.contexts, cell.num_steps))
        for measure in (engine.steps_ahead_s, engine.steps_s)
    )
    return DecodeRow(cell, ahead_s, strict_s, work.floor_s(rates))


@contextmanager
def _phase(name: str, console: Console) -> Iterator[None]:
    started = time.perf_counter()
    yield
    console.print(f"{name}: {time.perf_counter() - started:.1f} s")

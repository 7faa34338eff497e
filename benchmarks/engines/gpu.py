"""The engine on one CUDA device: prompts and decode steps against the floor, and beside vLLM.

Weights are random, in the shape of a model: time depends on none. A step is timed twice: strictly
one after the other, and with one step under way, as a node runs them; the latter is what counts.
vLLM's figures were measured elsewhere (`VLLM`), not in this run: a reference, and on another device
than its no comparison.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.engines.cells import Cell
from benchmarks.engines.floor import MachineRates, decode_work, measure_rates, prefill_work
from benchmarks.engines.ours import Ours, num_pages_for
from benchmarks.engines.report import rounded, shown
from benchmarks.engines.shapes import save_shape
from benchmarks.machine import machine
from engine.build import load_model_runner
from engine.model.config import ModelConfig
from engine.options import EngineOptions
from protocol.layout import KVLayout

PROMPTS = (512, 2048, 4096, 8192, 32_768)
DECODES = ((1, 2048), (8, 2048), (32, 2048), (128, 2048), (1, 32_768))
"""(batch, context)."""
NUM_STEPS, QUICK_STEPS = 64, 16
NUM_PROMPTS, QUICK_PROMPTS = 7, 3


@dataclass(frozen=True)
class Reference:
    """What another engine does with one shape in bfloat16."""

    source: str
    prefill_tok_s: Mapping[int, float]
    """Tokens per second by the length of the prompt."""
    step_ms: Mapping[tuple[int, int], float]
    """Milliseconds of a step by batch and context."""


VLLM = {
    "llama-3-8b": Reference(
        "vLLM 0.23 on one H200, measured elsewhere",
        {512: 36_800, 2048: 40_700, 4096: 40_800, 8192: 38_200, 32_768: 27_300},
        {
            (1, 2048): 4.92,
            (8, 2048): 5.53,
            (32, 2048): 7.36,
            (128, 2048): 15.08,
            (1, 32_768): 5.98,
        },
    )
}
NO_REFERENCE = Reference("none", {}, {})


@dataclass(frozen=True)
class DecodeRow:
    """One row; seconds are medians."""

    cell: Cell
    step_s: float
    """With one step under way."""
    strict_step_s: float
    """One step after the other."""
    floor_s: float


@dataclass(frozen=True)
class PrefillRow:
    num_tokens: int
    prefill_s: float
    """Seconds from one prompt alone to its first token."""
    floor_s: float


@dataclass(frozen=True)
class GpuReport:
    decodes: Sequence[DecodeRow]
    prefills: Sequence[PrefillRow]
    reference: Reference = NO_REFERENCE
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the JSON line that describe the whole run."""

    def as_json(self) -> dict[str, Any]:
        return {
            "bench": "engine",
            **self.notes,
            "reference": self.reference.source,
            "rows": [self._decode_json(row) for row in self.decodes],
            "prefill": [self._prefill_json(row) for row in self.prefills],
        }

    def _decode_json(self, row: DecodeRow) -> dict[str, Any]:
        return {
            "batch": row.cell.batch,
            "context": row.cell.context,
            "decode_tok_s": rounded(row.cell.batch / row.step_s),
            "decode_vs_transformers": None,
            "decode_vs_llamacpp": None,
            "prefill_vs_transformers": None,
            "step_vs_floor": rounded(row.step_s / row.floor_s),
            "overhead_share": None,
            "step_ms": rounded(row.step_s * 1e3),
            "strict_step_ms": rounded(row.strict_step_s * 1e3),
            "step_floor_ms": rounded(row.floor_s * 1e3),
            "reference_step_ms": self.reference.step_ms.get((row.cell.batch, row.cell.context)),
        }

    def _prefill_json(self, row: PrefillRow) -> dict[str, Any]:
        return {
            "tokens": row.num_tokens,
            "prefill_tok_s": rounded(row.num_tokens / row.prefill_s),
            "prefill_ms": rounded(row.prefill_s * 1e3),
            "prefill_vs_floor": rounded(row.prefill_s / row.floor_s),
            "reference_tok_s": self.reference.prefill_tok_s.get(row.num_tokens),
        }

    def tables(self) -> list[Table]:
        return [self._decode_table(), self._prefill_table()]

    def _decode_table(self) -> Table:
        table = Table(title="decode", box=box.SIMPLE, caption=f"reference: {self.reference.source}")
        headings = ("batch", "context", "tok/s", "step ms", "strictly ms", "floor ms", "÷ floor")
        for heading in (*headings, "reference ms"):
            table.add_column(heading, justify="right")
        for row in self.decodes:
            table.add_row(
                str(row.cell.batch),
                str(row.cell.context),
                f"{row.cell.batch / row.step_s:.0f}",
                f"{row.step_s * 1e3:.2f}",
                f"{row.strict_step_s * 1e3:.2f}",
                f"{row.floor_s * 1e3:.2f}",
                f"{row.step_s / row.floor_s:.2f}",
                shown(self.reference.step_ms.get((row.cell.batch, row.cell.context))),
            )
        return table

    def _prefill_table(self) -> Table:
        table = Table(title="prefill", box=box.SIMPLE)
        for heading in ("tokens", "tok/s", "ms", "÷ floor", "reference tok/s"):
            table.add_column(heading, justify="right")
        for row in self.prefills:
            table.add_row(
                str(row.num_tokens),
                f"{row.num_tokens / row.prefill_s:.0f}",
                f"{row.prefill_s * 1e3:.1f}",
                f"{row.prefill_s / row.floor_s:.2f}",
                shown(self.reference.prefill_tok_s.get(row.num_tokens), ".0f"),
            )
        return table


def measure_shape(
    shape: str, options: EngineOptions, chunk_tokens: int, quick: bool, console: Console
) -> GpuReport:
    """Needs a CUDA device with room for the weights and the largest cell."""
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory() as directory:
        save_shape(shape, Path(directory))
        prompts = PROMPTS[:3] if quick else PROMPTS
        decodes = [Cell(*size, QUICK_STEPS if quick else NUM_STEPS) for size in DECODES]
        num_prompts = QUICK_PROMPTS if quick else NUM_PROMPTS
        report = measure_device(
            Path(directory), options, device, prompts, num_prompts, decodes, chunk_tokens, console
        )
    names = {"gpu": torch.cuda.get_device_name(device), "shape": shape}
    return GpuReport(
        report.decodes,
        report.prefills,
        VLLM.get(shape, NO_REFERENCE),
        {"machine": machine("torch") | names, **report.notes},
    )


def measure_device(
    model: Path,
    options: EngineOptions,
    device: torch.device,
    prompts: Sequence[int],
    num_prompts: int,
    decodes: Sequence[Cell],
    chunk_tokens: int,
    console: Console,
) -> GpuReport:
    """Every length of `prompts` computed `num_prompts` times, and every cell of `decodes`."""
    with _phase("rates of the device", console):
        rates = measure_rates(getattr(torch, options.dtype), device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    console.print(
        f"copy {rates.copy_bytes_s / 1e9:.0f} GB/s, matmul {rates.matmul_flop_s / 1e12:.2f} TFLOP/s"
    )
    alone = [Cell(1, num_tokens, 0) for num_tokens in prompts]
    options = replace(
        options,
        max_running_requests=max(cell.batch for cell in decodes),
        context_length=max(cell.length for cell in [*decodes, *alone]),
    )
    with _phase("loading and warming up", console):
        runner = load_model_runner(
            model, options, lambda layout: num_pages_for([*decodes, *alone], layout), device
        )
    console.print(f"attention: {runner.attention.name}")
    engine, config, layout = Ours(runner, chunk_tokens), runner.config, runner.layout
    with _phase("prefill", console):
        prefills = [_prefill(engine, cell, num_prompts, config, layout, rates) for cell in alone]
    with _phase("decode", console):
        rows = [_decode(engine, cell, config, layout, rates) for cell in decodes]
    notes = {
        "dtype": layout.dtype,
        "attention": runner.attention.name,
        "chunk_tokens": chunk_tokens,
        "copy_bytes_s": round(rates.copy_bytes_s),
        "matmul_flop_s": round(rates.matmul_flop_s),
    }
    return GpuReport(rows, prefills, notes=notes)


def _prefill(
    engine: Ours,
    cell: Cell,
    num_prompts: int,
    config: ModelConfig,
    layout: KVLayout,
    rates: MachineRates,
) -> PrefillRow:
    engine.prefill_s(cell)
    seconds = statistics.median(engine.prefill_s(cell) for _ in range(num_prompts))
    floor_s = prefill_work(config, layout.dtype, 1, cell.context).floor_s(rates)
    return PrefillRow(cell.context, seconds, floor_s)


def _decode(
    engine: Ours, cell: Cell, config: ModelConfig, layout: KVLayout, rates: MachineRates
) -> DecodeRow:
    work = decode_work(config, layout.dtype, cell.batch, cell.mean_context)
    ahead_s = statistics.median(engine.step_ahead_s(cell))
    return DecodeRow(cell, ahead_s, statistics.median(engine.step_s(cell)), work.floor_s(rates))


@contextmanager
def _phase(name: str, console: Console) -> Iterator[None]:
    started = time.perf_counter()
    yield
    console.print(f"{name}: {time.perf_counter() - started:.1f} s")

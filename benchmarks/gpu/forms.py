"""Measures a model for each way in which its weights may be rounded at load, on one CUDA device.

All stand in memory at once, and take turns cell by cell: what else happens to the machine happens
to all of them. Weights are random.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.engines.cells import Cell
from benchmarks.engines.ours import Ours
from benchmarks.engines.report import rounded
from benchmarks.engines.shapes import save_shape
from benchmarks.gpu.measuring import num_pages_of_plan
from benchmarks.gpu.plan import DecodeCell, GpuPlan
from benchmarks.machine import machine
from engine.build import load_model_runner
from engine.options import EngineOptions

ROUNDS = 3


@dataclass(frozen=True)
class FormRow:
    """The median seconds of one prompt or one decode step, by `--quantization`."""

    what: str
    """prefill or decode."""
    batch: int
    context: int
    seconds: Mapping[str, float]

    def ratios(self) -> dict[str, float | None]:
        """Returns the times over that of the first form."""
        first = next(iter(self.seconds.values()))
        return {name: rounded(seconds / first, 3) for name, seconds in self.seconds.items()}


@dataclass(frozen=True)
class FormsReport:
    """What one run measured on one card."""

    rows: Sequence[FormRow]
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the JSON line that describe the whole run."""

    def as_json(self) -> dict[str, Any]:
        """Returns the line for programs."""
        rows = [
            {
                "what": row.what,
                "batch": row.batch,
                "context": row.context,
                "ms": {name: rounded(seconds * 1e3) for name, seconds in row.seconds.items()},
                "vs_first": row.ratios(),
            }
            for row in self.rows
        ]
        return {"bench": "engine-forms", **self.notes, "rows": rows}

    def tables(self) -> list[Table]:
        """Returns the table for people."""
        table = Table(title="ms, and times the first", box=box.SIMPLE)
        for heading in ("", "batch", "context", *self.rows[0].seconds):
            table.add_column(heading)
        for row in self.rows:
            ratios = row.ratios()
            cells = [f"{s * 1e3:.2f} ({ratios[name]})" for name, s in row.seconds.items()]
            table.add_row(row.what, str(row.batch), str(row.context), *cells)
        return [table]


def measure_forms(
    shape: str,
    options: EngineOptions,
    names: Sequence[str],
    plan: GpuPlan,
    chunk_tokens: int,
    console: Console,
) -> FormsReport:
    """Measures `shape` with each `--quantization` of `names`, the first of which the others are
    compared with. Needs a CUDA device with room for all of them."""
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory)
        save_shape(shape, model)
        report = measure_forms_on(model, options, device, names, plan, chunk_tokens, console)
    gpu = {"gpu": torch.cuda.get_device_name(device), "shape": shape, "dtype": options.dtype}
    notes = {"machine": machine("torch", "triton") | gpu, **report.notes}
    return replace(report, notes=notes)


def measure_forms_on(
    model: Path,
    options: EngineOptions,
    device: torch.device,
    names: Sequence[str],
    plan: GpuPlan,
    chunk_tokens: int,
    console: Console,
) -> FormsReport:
    """Measures the model in the directory `model` in every prompt and every cell of the plan."""
    options = replace(options, max_running_requests=plan.largest_batch, context_length=plan.longest)
    engines: dict[str, Ours] = {}
    megabytes: dict[str, float] = {}
    for name in names:
        runner = load_model_runner(
            model,
            replace(options, quantization=name),
            lambda layout: num_pages_of_plan(plan, layout),
            device,
        )
        engines[name] = Ours(runner, chunk_tokens)
        weights = runner.model.parameters()
        megabytes[name] = round(sum(w.numel() * w.element_size() for w in weights) / 2**20, 1)
        console.print(f"{name}: {megabytes[name]} MiB of weights")
    rows = [_prefill(engines, length, plan.num_prompts) for length in plan.prompts]
    rows += [_decode(engines, cell) for cell in plan.decodes]
    return FormsReport(rows, {"weights_mib": megabytes})


def _prefill(engines: Mapping[str, Ours], num_tokens: int, num_prompts: int) -> FormRow:
    cell = Cell(1, num_tokens, 0)
    seconds = _in_turns(engines, num_prompts + 1, lambda engine: [engine.prefill_s(cell)])
    return FormRow("prefill", 1, num_tokens, seconds)


def _decode(engines: Mapping[str, Ours], cell: DecodeCell) -> FormRow:
    seconds = _in_turns(
        engines, ROUNDS + 1, lambda engine: engine.steps_ahead_s(cell.contexts, cell.num_steps)
    )
    return FormRow("decode", cell.batch, max(cell.contexts), seconds)


def _in_turns(
    engines: Mapping[str, Ours], num_rounds: int, measure: Callable[[Ours], list[float]]
) -> dict[str, float]:
    """Returns medians over all rounds but the first, which compiles what is not compiled yet."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(num_rounds):
        for name, engine in engines.items():
            measured = measure(engine)
            if number > 0:
                times[name] += measured
    return {name: statistics.median(all_times) for name, all_times in times.items()}

"""What is told of runs: a document for programs, tables for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvrelay.bench.generator_health import GeneratorHealth
from kvrelay.bench.results.percentiles import Percentiles
from kvrelay.bench.results.slo import GAP_SHARE
from kvrelay.bench.results.statistics import MAX_ERROR_RATE, RunFigures

LATENCIES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "E2E"}
RATES = {
    "requests_per_s": "requests/s",
    "input_tokens_per_s": "prompt tokens/s",
    "output_tokens_per_s": "answer tokens/s",
    "goodput_per_s": "goodput, requests/s",
    "goodput_share": "goodput, share of requests",
    "hit_rate": "hit rate of prompt tokens",
}
FLUSHED = "flushed before each run"
AS_FOUND = "as it was found in run 1, and warm of the same prompts in later ones"
DEFINITIONS = {
    "ttft_ms": "sending (connecting included) to the first event with text or tokens",
    "tpot_ms": "mean time per token after the first, one value per answer",
    "itl_ms": "time before each token after the first, of all answers; tokens that come in one "
    "event share its gap; without counts in events (OpenAI), an event is one token",
    "e2e_ms": "sending to the end of the answer",
    "hit_rate": "cached_tokens ÷ prompt_tokens as the server tells them, of answers that tell both",
    "goodput": f"requests that kept every SLO (itl: {GAP_SHARE:.0%} of an answer's gaps keep it); "
    "those that failed did not",
    "error": "another status than 200 (429 too), a time-out, a lost connection, an error in the "
    "stream, no token, or another number of tokens than was asked for",
}


@dataclass(frozen=True)
class RunReport:
    """One run."""

    figures: RunFigures
    health: GeneratorHealth


def document_of(
    settings: dict[str, Any], runs: Sequence[RunReport], is_flushed: bool, num_gpus: int
) -> dict[str, Any]:
    """Returns everything as a document for JSON. Every figure has its error rate beside it.

    Unless the cache was flushed before each run, the first one found another cache than the later
    ones, and the spread is that of the later ones.
    """
    alike = runs if is_flushed or len(runs) == 1 else runs[1:]
    return {
        "settings": settings,
        "cache": FLUSHED if is_flushed else AS_FOUND,
        "is_result": all(run.figures.is_result for run in runs),
        "definitions": DEFINITIONS,
        "spread": {name: _spread([getattr(run.figures, name) for run in alike]) for name in RATES}
        | {
            f"{name}_{point}": _spread([_point(run, name, point) for run in alike])
            for name in LATENCIES
            for point in ("p50", "p90", "p99")
        },
        "runs": [_run_document(run, num_gpus) for run in runs],
    }


def show(document: dict[str, Any], runs: Sequence[RunReport], console: Console) -> None:
    """Prints tables of the runs, the definitions, and what is wrong with them."""
    for number, run in enumerate(runs, start=1):
        console.print(Text(_headline(number, run), style="bold"))
        console.print(_run_table(run.figures))
    console.print(Text(f"cache: {document['cache']}"))
    if len(runs) > 1:
        console.print(_spread_table(document["spread"]))
    for name, definition in DEFINITIONS.items():
        console.print(Text(f"{name.removesuffix('_ms')}: {definition}", style="dim"))
    for number, run in enumerate(runs, start=1):
        if run.health.warning:
            console.print(Text(f"run {number}: {run.health.warning}", style="yellow"))
        if not run.figures.is_result:
            console.print(
                Text(
                    f"run {number} is not a result: {run.figures.error_rate:.1%} of its requests "
                    f"failed, and at most {MAX_ERROR_RATE:.0%} may",
                    style="red",
                )
            )


def _run_document(run: RunReport, num_gpus: int) -> dict[str, Any]:
    figures = run.figures
    document = asdict(figures)
    for name in LATENCIES:
        if document[name] is not None:
            document[name]["error_rate"] = figures.error_rate
    per_gpu = {"goodput_per_s_per_gpu": figures.goodput_per_s / num_gpus} if num_gpus else {}
    rates = {"error_rate": figures.error_rate, "is_result": figures.is_result}
    generator = asdict(run.health) | {"warning": run.health.warning}
    return document | per_gpu | rates | {"generator": generator}


def _point(run: RunReport, name: str, point: str) -> float | None:
    found: Percentiles | None = getattr(run.figures, name)
    return None if found is None else float(getattr(found, point))


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Returns the smallest, the middle and the largest value; None where a run has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return {"min": min(known), "median": statistics.median(known), "max": max(known)}


def _headline(number: int, run: RunReport) -> str:
    """Returns a line on a run: its size, its failures by kind, and how busy the generator was."""
    figures = run.figures
    kinds = ", ".join(f"{count} × {kind}" for kind, count in sorted(figures.errors.items()))
    return (
        f"run {number}: {figures.num_requests} requests in {figures.duration_s:.1f} s, "
        f"{figures.num_errors} failed{f' ({kinds})' if kinds else ''}; generator "
        f"{run.health.cpu_share:.0%} of a core, {run.health.events_per_s:.0f} events/s"
    )


def _run_table(figures: RunFigures) -> Table:
    """Returns one row per figure, each with the share of requests that failed."""
    table = Table(box=box.SIMPLE, padding=(0, 1))
    table.add_column("")
    for heading in ("mean", "p50", "p90", "p99", "errors"):
        table.add_column(heading, justify="right")
    errors = f"{figures.error_rate:.1%}"
    for name, label in LATENCIES.items():
        found: Percentiles | None = getattr(figures, name)
        points = (found.mean, found.p50, found.p90, found.p99) if found else ()
        cells = [f"{point:.1f}" for point in points] or ["–"] * 4
        table.add_row(f"{label}, ms", *cells, errors)
    for name, label in RATES.items():
        table.add_row(label, _number(name, getattr(figures, name)), "", "", "", errors)
    return table


def _spread_table(spread: dict[str, dict[str, float] | None]) -> Table:
    table = Table(
        title="spread over the runs", title_justify="left", box=box.SIMPLE, padding=(0, 1)
    )
    table.add_column("")
    for heading in ("min", "median", "max"):
        table.add_column(heading, justify="right")
    for name, values in spread.items():
        if values is not None:
            table.add_row(name, *(_number(name, values[key]) for key in ("min", "median", "max")))
    return table


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "not told"
    return f"{value:.1%}" if name in ("hit_rate", "goodput_share") else f"{value:.2f}"

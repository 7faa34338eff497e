"""Measures one running system: a warm-up that does not count, then every load."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.client import LoadClient, Seen
from benchmarks.serving.figures import Figures, figures_by_row
from benchmarks.serving.loads import Load, Scale
from benchmarks.serving.pauses import pauses_of
from benchmarks.serving.systems.asking import System

WARM_UP_LOADS = (Load("alone", 0.0), Load("random", 4.0))
WARM_UP_SEED = -1
Health = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is asked of every system."""

    loads: Sequence[Load]
    seconds: float
    num_repeats: int
    scale: Scale
    vocabulary: range
    warm_up_s: float


@dataclass
class Measured:
    """What was seen of one system."""

    name: str
    notes: dict[str, Any] = field(default_factory=dict)
    """What is to be known of the whole run, as versions, and how long the start took."""
    rows: dict[str, list[Figures]] = field(default_factory=dict)
    """The figures of each row, one for each repeat."""
    loads: list[dict[str, Any]] = field(default_factory=list)
    """Of each load, in order: how the client kept up, and the health of the system so far."""

    @property
    def num_errors(self) -> int:
        """All requests that failed."""
        return sum(figures["errors"] for repeats in self.rows.values() for figures in repeats)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.notes, "rows": self.rows, "loads": self.loads}


def measure(name: str, system: System, plan: Plan, health: Health = dict) -> Measured:
    """Returns what was seen of a system. Prints a line for each row. `health` is asked after each
    load."""
    for load in WARM_UP_LOADS:
        _run(system, load, plan, plan.warm_up_s, WARM_UP_SEED)
    measured = Measured(name)
    for repeat in range(plan.num_repeats):
        for load in plan.loads:
            seen = _run(system, load, plan, plan.seconds, repeat)
            for row, figures in figures_by_row(seen.records).items():
                measured.rows.setdefault(row, []).append(figures)
                print(f"{name:>16} | {row:<12} | {shown(figures)}", flush=True)
            if seen.health.warning:
                print(f"{load.label}: {seen.health.warning}", file=sys.stderr)
            pauses = pauses_of([record.answer for record in seen.records])
            print(f"{name:>16} | {load.label:<12} | {pauses}", flush=True)
            found = health()
            if found:
                told = ", ".join(f"{what} {value}" for what, value in found.items())
                print(f"{name:>16} | {'until now':<12} | {told}", flush=True)
            measured.notes |= found
            measured.loads.append(
                {
                    "load": load.label,
                    "repeat": repeat,
                    "client_lag_p99_ms": round(seen.health.lag_p99_ms, 2),
                    "client_cpu_share": round(seen.health.cpu_share, 3),
                    "pauses": dataclasses.asdict(pauses),
                    **found,
                }
            )
    return measured


def shown(figures: Figures) -> str:
    """Returns the figures of a row as one line."""
    ttft, itl = (
        " / ".join(_number(figures[f"{kind}_{which}_ms"]) for which in names)
        for kind, names in (("ttft", ("mean", "p50", "p99")), ("itl", ("p50", "p99", "max")))
    )
    hits = "?" if figures["hit_rate"] is None else f"{figures['hit_rate']:.0%}"
    failed = f" ({figures['first_error']})" if figures["errors"] else ""
    return (
        f"{figures['requests']} requests, {figures['errors']} errors{failed}, "
        f"{figures['retried']} retried | TTFT mean/p50/p99 {ttft} ms | ITL p50/p99/max {itl} ms | "
        f"{figures['tokens_per_s']:.0f} tok/s | hits {hits}"
    )


def _run(system: System, load: Load, plan: Plan, seconds: float, seed: int) -> Seen:
    users = load.users(seconds, plan.scale, seed)
    return asyncio.run(LoadClient(system, plan.vocabulary).run(users))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"

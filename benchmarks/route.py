"""Replays a trace through the router and compares policies: `make bench-route`.

The physics is in `benchmarks.replaying.replay`. Two things limit the figures: no policy hits more
than the share of blocks that were asked for before (`bound`, an infinite cache shared by all), and
no time to the first token is shorter than the prompt's own uncached tokens take. `hit` counts
blocks found on the node that computed the prompt, `fetched` those that another node sent to it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.replaying.replay import REPLAYED, Outcome, Replay, Settings
from coordinator.routing.policies import POLICIES
from kvrelay.bench.workloads.trace import TraceRequest, bound, read_trace
from protocol.errors import UserError

TRACE = Path(__file__).parent / "data" / "conversation_trace.jsonl.gz"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        run(options)
    except UserError as error:
        print(f"bench-route: {error}", file=sys.stderr)
        sys.exit(1)


def run(options: argparse.Namespace) -> None:
    """Replays the trace, or sends it to a live cluster, and prints and writes the figures. Raises
    UserError for options that make no sense."""
    policies = options.policies.split(",")
    if unknown := set(policies) - set(REPLAYED):
        raise UserError(f"unknown policies {sorted(unknown)}; there are {', '.join(REPLAYED)}")
    for name in ("nodes", "speedup", "coordinators"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} must be more than 0")
    trace = read_trace(options.trace, options.speedup)[: options.requests or None]
    longest = max(len(request.hashes) for request in trace)
    if 0 < options.pages_per_node < longest:
        raise UserError(
            f"--pages-per-node is {options.pages_per_node}; the longest prompt of the trace has "
            f"{longest} blocks"
        )
    if options.live:
        from benchmarks.live import replay_live

        if unknown := set(policies) - set(POLICIES):
            raise UserError(f"{sorted(unknown)} is only replayed; --live has {', '.join(POLICIES)}")

        replay_live(trace, options)
        return
    outcomes = _replay_all(trace, policies, options)
    most_hits = bound(trace)
    _print_table(outcomes, most_hits)
    if options.plot:
        plot(outcomes, options.plot)
    report = {
        "bench": "route",
        "trace": options.trace.name,
        "nodes": options.nodes,
        "pages_per_node": options.pages_per_node,
        "speedup": options.speedup,
        "event_lag_s": options.event_lag,
        "coordinators": options.coordinators,
        "requests": len(trace),
        "bound": round(most_hits, 4),
        "policies": {name: _figures(outcome) for name, outcome in outcomes.items()},
        "machine": machine(),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def plot(outcomes: dict[str, Outcome], path: Path) -> None:
    """Writes a picture of the distributions of the time to the first token. Raises UserError if
    matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, outcome in outcomes.items():
        times = sorted(outcome.first_token_s)
        axes.plot(times, [(i + 1) / len(times) for i in range(len(times))], label=name)
    axes.set(
        xscale="log",
        xlabel="time to first token, seconds",
        ylabel="share of requests",
        ylim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _replay_all(
    trace: list[TraceRequest], policies: list[str], options: argparse.Namespace
) -> dict[str, Outcome]:
    """Replays the trace once per policy and returns the outcomes by name. Shows its progress."""
    outcomes = {}
    columns = (TextColumn("{task.description:>15}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for name in policies:
            task = progress.add_task(name, total=len(trace))
            settings = Settings(
                options.nodes,
                options.pages_per_node,
                name,
                options.event_lag,
                options.coordinators,
                options.seed,
            )
            replay = Replay(trace, settings)
            outcomes[name] = replay.run(partial(_show, progress, task))
    return outcomes


def _show(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def _figures(outcome: Outcome) -> dict[str, float]:
    return {
        "hit": round(outcome.hit, 4),
        "hit_fetched": round(outcome.hit_fetched, 4),
        "ttft_mean_s": round(outcome.mean_s, 4),
        "ttft_p50_s": round(outcome.quantile_s(0.5), 4),
        "ttft_p90_s": round(outcome.quantile_s(0.9), 4),
        "ttft_p99_s": round(outcome.quantile_s(0.99), 4),
        "imbalance": round(outcome.imbalance, 4),
        "utilisation": round(outcome.utilisation, 4),
        "us_per_decision": round(outcome.us_per_decision, 1),
    }


def _print_table(outcomes: dict[str, Outcome], most_hits: float) -> None:
    table = Table(title=f"bound {most_hits:.1%} of blocks", box=box.SIMPLE)
    table.add_column("policy", no_wrap=True)
    headings = ("hit", "+ fetched", "of bound", "mean s", "p50", "p90", "p99", "max ÷ mean", "µs")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, outcome in outcomes.items():
        table.add_row(
            name,
            f"{outcome.hit:.1%}",
            f"{outcome.hit_fetched:.1%}",
            f"{outcome.hit_fetched / most_hits:.0%}" if most_hits else "-",
            f"{outcome.mean_s:.3f}",
            *(f"{outcome.quantile_s(share):.3f}" for share in (0.5, 0.9, 0.99)),
            f"{outcome.imbalance:.3f}",
            f"{outcome.us_per_decision:.0f}",
        )
    Console(width=110).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-route", description=__doc__.splitlines()[0])
    add: Any = parser.add_argument
    add("--trace", type=Path, default=TRACE, help="a file in Mooncake's format, .gz or not")
    add("--nodes", type=int, default=8)
    add("--pages-per-node", type=int, default=5000, help="blocks of 512 tokens; 0: unlimited")
    add("--speedup", type=float, default=8.71, help="how much faster than it was recorded")
    add("--event-lag", type=float, default=0.0, help="seconds until a change of ownership is known")
    add(
        "--policies",
        default="round-robin,least-loaded,greedy,disaggregate",
        help="of " + ", ".join(REPLAYED),
    )
    add("--coordinators", type=int, default=1, help="that share the requests, side by side")
    add("--requests", type=int, default=0, help="only the first so many; 0: all")
    add("--seed", type=int, default=0, help="of ties")
    add("--plot", type=Path, help="write the distributions to this picture (needs matplotlib)")
    add("--out", type=Path, help="also write the result to this file")
    add("--live", action="store_true", help="through a real coordinator, Redis and stub nodes")
    return parser


if __name__ == "__main__":
    main()

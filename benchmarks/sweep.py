"""The routing replay over cluster sizes, caches, loads and lags: `python -m benchmarks.sweep`.

It would show if a policy were tuned to one point of the replay (`benchmarks.route`) and bad at
others. The greedy rule is replayed in the same run: it takes the least estimated time to the first
token, with exact knowledge and fetches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.replaying.replay import Replay, Settings
from benchmarks.route import TRACE
from kvrelay.bench.workloads.trace import read_trace

# Each row: nodes, blocks per node (0: unlimited), speed-up of the trace, event lag in seconds,
# coordinators.
GRID = (
    (8, 5_000, 5.9, 0.0, 1),
    (8, 5_000, 8.71, 0.0, 1),
    (8, 5_000, 10.0, 0.0, 1),
    (8, 5_000, 11.2, 0.0, 1),
    (8, 5_000, 8.71, 1.0, 1),
    (8, 1_500, 8.71, 0.0, 1),
    (8, 1_500, 9.6, 0.0, 1),
    (8, 1_500, 9.8, 0.0, 1),
    (8, 20_000, 8.71, 0.0, 1),
    (8, 0, 8.71, 0.0, 1),
    (4, 5_000, 4.36, 0.0, 1),
    (4, 20_000, 5.5, 0.0, 1),
    (16, 5_000, 17.4, 0.0, 1),
    (16, 5_000, 17.4, 1.0, 1),
    (16, 1_500, 19.0, 0.0, 1),
    (16, 1_500, 21.2, 0.0, 1),
    (16, 0, 20.0, 0.0, 1),
    (8, 5_000, 8.71, 0.0, 2),
    (8, 5_000, 8.71, 0.0, 4),
)
POLICIES = ("greedy", "disaggregate")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    table = Table(box=box.SIMPLE)
    for heading in ("nodes", "blocks", "speed-up", "lag s", "coordinators", "load"):
        table.add_column(heading, justify="right")
    for policy in POLICIES:
        for heading in ("hit + f", "mean s", "p99 s", "max ÷ mean"):
            table.add_column(f"{policy}\n{heading}", justify="right")
    for nodes, pages, speedup, lag, coordinators in track(GRID, console=Console(stderr=True)):
        trace = read_trace(options.trace, speedup)
        outcomes = {
            policy: Replay(trace, Settings(nodes, pages, policy, lag, coordinators)).run()
            for policy in POLICIES
        }
        row: dict[str, object] = {
            "nodes": nodes,
            "pages_per_node": pages,
            "speedup": speedup,
            "event_lag_s": lag,
            "coordinators": coordinators,
            "load": round(outcomes["disaggregate"].utilisation, 3),
        }
        cells = [str(value) for value in row.values()]
        for policy, outcome in outcomes.items():
            row[policy] = {
                "hit_fetched": round(outcome.hit_fetched, 4),
                "ttft_mean_s": round(outcome.mean_s, 4),
                "ttft_p99_s": round(outcome.quantile_s(0.99), 4),
                "imbalance": round(outcome.imbalance, 4),
            }
            cells += [
                f"{outcome.hit_fetched:.1%}",
                f"{outcome.mean_s:.3f}",
                f"{outcome.quantile_s(0.99):.3f}",
                f"{outcome.imbalance:.3f}",
            ]
        rows.append(row)
        table.add_row(*cells)
    Console(width=140).print(table)
    report = {"bench": "route-sweep", "trace": options.trace.name, "rows": rows}
    report["machine"] = machine()
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""Goodput under more load than a cluster can bear, and fairness between tenants (`make
bench-overload`).

A request is good if its first token comes within the bound and all its tokens are right. Load comes
in an open loop, at 1, 2, 3 and 10 times the capacity, which is what a closed loop of many clients
gets answered; behind each overload the load is seven tenths of the capacity, and how long it
takes until all is good again is the recovery. With and without the admission in one run.

A cluster that serves everybody in order gets later with every request that is more than it can
serve, until all that it computes is too late: the goodput falls to nothing while the nodes are
busy. With prompts of 160 tokens on average, and two nodes that compute 1,000 tokens a second and
need 10 ms a prompt, the capacity is 12 requests a second: slow enough that this machine is not what
is measured.

Fairness: three tenants send a fifth of the capacity each, a fourth one as much, then ten times as
much; the figure is the 99th percentile of the others' time to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.clusters.modelled_engine import ANSWER
from benchmarks.machine import machine
from benchmarks.overload.cluster import (
    ANSWER_TOKENS,
    body_of,
    computing_cluster,
    sleeping_cluster,
)
from benchmarks.overload.load import busiest
from benchmarks.overload.measures import Options, fairness, overload
from infra.cluster import LocalCluster

RIGHT = [ANSWER] * ANSWER_TOKENS
NUM_CLIENTS = 16
FACTORS = (1, 2, 3, 10)
REAL_FACTORS = (1, 3)
COLUMNS = {
    "sent": "sent_per_s",
    "good": "good_per_s",
    "answered": "answered_per_s",
    "refused": "refused_per_s",
    "p99 s": "ttft_p99_s",
    "back in": "recovery_s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="More load than a cluster can bear.")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--bound", type=float, default=2.0, help="seconds to a good first token")
    parser.add_argument("--rounds", type=int, default=5, help="of the measurement of tenants")
    parser.add_argument("--out", type=Path, help="file for the figures")
    given = parser.parse_args()
    options = Options(given.seconds, given.bound, given.rounds)
    without = {"max_ttft": "0", "max_wait_s": "600"}
    bounded = {"max_ttft": str(given.bound)}
    report: dict[str, Any] = {"bench": "overload", "bound_s": given.bound}
    report["without"] = asyncio.run(loads(sleeping_cluster(without), FACTORS, None, options))
    capacity = report["without"]["capacity_per_s"]
    report["with"] = asyncio.run(loads(sleeping_cluster(bounded), FACTORS, capacity, options))
    report["cpu_ms_per_refusal"] = cpu_ms_per_refusal(report["with"]["loads"])
    report["tenants"] = asyncio.run(tenants(sleeping_cluster(bounded), capacity, options))
    real = loads(computing_cluster(without), REAL_FACTORS, None, options, right=None)
    report["real_without"] = asyncio.run(real)
    capacity = report["real_without"]["capacity_per_s"]
    real = loads(computing_cluster(bounded), REAL_FACTORS, capacity, options, right=None)
    report["real_with"] = asyncio.run(real)
    report["machine"] = machine("uvicorn", "uvloop", "pyzmq")
    print_table(report)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


async def loads(
    running: AbstractContextManager[LocalCluster],
    factors: tuple[int, ...],
    capacity: float | None,
    options: Options,
    right: list[int] | None = RIGHT,
) -> dict[str, Any]:
    """Returns the figures of each load on a cluster, by its factor. A `capacity` that is not known
    is measured first."""
    with running as cluster:
        if capacity is None:
            asked = busiest(cluster.url, NUM_CLIENTS, options.seconds, body_of, options.chance)
            capacity = round(await asked, 2)
        rows = {
            str(factor): await overload(cluster, factor, capacity, options, right)
            for factor in factors
        }
    return {"capacity_per_s": capacity, "loads": rows}


async def tenants(
    running: AbstractContextManager[LocalCluster], capacity: float, options: Options
) -> dict[str, Any]:
    """Returns what a greedy tenant does to the others on a cluster."""
    with running as cluster:
        return dict(await fairness(cluster, capacity, options))


def cpu_ms_per_refusal(rows: dict[str, Any]) -> float:
    """Returns what one more refusal costs the coordinator, connection and all: the difference
    between the loads with the most refusals and the fewest, which answer about as much."""
    most, fewest = rows["10"], rows["2"]
    cpu_s = most["coordinator_cpu_s"] - fewest["coordinator_cpu_s"]
    return round(1e3 * cpu_s / max(1, most["refused"] - fewest["refused"]), 3)


def print_table(report: dict[str, Any]) -> None:
    table = Table(title="requests per second", box=box.SIMPLE)
    for heading in ("admission", "load", *COLUMNS):
        table.add_column(heading, justify="right")
    for name in ("without", "with", "real_without", "real_with"):
        for factor, row in report[name]["loads"].items():
            table.add_row(name, f"{factor} ×", *(str(row[key]) for key in COLUMNS.values()))
    console = Console(width=100)
    console.print(table)
    console.print(f"others' p99 beside a greedy tenant: {report['tenants']['ratio']} times as long")


if __name__ == "__main__":
    main()

"""Clusters of up to 1,000 nodes and 16 coordinators: `make bench-scale`.

    .venv/bin/python -m benchmarks.scale --quick      # seconds: 10 and 40 nodes

Real are the cores of the coordinators, the mirrors of ownership, what nodes write to Redis, when
heartbeats are sent and what is in them; played are Redis, the network, the clients and the devices
(`benchmarks.scale.nodes`, `benchmarks.scale.conversations`). All runs with the same number of nodes
serve the same conversations.

What is per second is counted over the virtual seconds in which conversations begin; Redis is not
timed. CPU times are of this machine. `core share` is how much of one core a coordinator needs for
heartbeats, for what Redis tells and for requests, without HTTP, text and sockets.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.scale.cluster import run_size
from benchmarks.scale.index_size import index_figures

NODES = (10, 100, 300, 1_000)
COORDINATORS = (1, 4, 16)
MIN_SECONDS = 3.0
NODE_SECONDS = 600.0
"""The conversations of so many seconds of nodes are served, and of MIN_SECONDS at least."""
INDEX_PAGES = 400_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all sizes, and prints tables and a JSON line."""
    parser = argparse.ArgumentParser(prog="bench-scale", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small clusters, some seconds")
    parser.add_argument("--seed", type=int, default=1, help="of the load and of ties")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args(arguments)
    nodes, coordinators = ((10, 40), (1, 2)) if options.quick else (NODES, COORDINATORS)
    seconds = {
        number: 1.0 if options.quick else max(MIN_SECONDS, NODE_SECONDS / number)
        for number in nodes
    }
    sizes = [(number, few, seconds[number]) for number in nodes for few in coordinators]
    runs = [(*size, options.seed) for size in reversed(sizes)]  # the longest first
    num_pages = INDEX_PAGES // 20 if options.quick else INDEX_PAGES
    # One process for each, so that its memory and its garbage are its own.
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        found = pool.imap(run_size, runs)
        shown = track(found, total=len(runs), console=Console(stderr=True), transient=True)
        rows = list(shown)[::-1]
        index = pool.starmap(index_figures, [(number, num_pages) for number in nodes])
    report = {
        "bench": "scale",
        "seed": options.seed,
        "runs": [compared(row, rows) for row in rows],
        "index": [{"nodes": n} | figures for n, figures in zip(nodes, index, strict=True)],
        "machine": machine("msgspec"),
    }
    _print_tables(report)
    rounded = _rounded(report)
    if options.out:
        options.out.write_text(json.dumps(rounded, indent=1) + "\n")
    print(json.dumps(rounded))


def _seconds(num_nodes: int) -> float:
    return max(MIN_SECONDS, NODE_SECONDS / num_nodes)


def compared(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the figures of a run with how far its hit rate is from that of one coordinator."""
    alone = next(r for r in rows if r["nodes"] == row["nodes"] and r["coordinators"] == 1)
    return row | {"hit_less_than_one": alone["hit"] - row["hit"]}


def _print_tables(report: dict[str, Any]) -> None:
    columns = {
        "nodes": lambda r: f"{r['nodes']:,}",
        "c.": lambda r: str(r["coordinators"]),
        "requests/s": lambda r: f"{r['requests_per_s']:,.0f}",
        "calls/s": lambda r: f"{r['redis_calls_per_s']:,.0f}",
        "operations/s": lambda r: f"{r['redis_operations_per_s']:,.0f}",
        "MB/s": lambda r: f"{r['redis_bytes_per_s'] / 1e6:.1f}",
        "beats/s": lambda r: f"{r['heartbeats_per_s']:,.0f}",
        "µs each": lambda r: f"{r['heartbeat_read_us'] + r['heartbeat_handle_us']:.0f}",
        "route µs": lambda r: f"{r['route_us']:,.0f}",
        "request µs": lambda r: f"{r['request_us']:,.0f}",
        "shares of a core": lambda r: " + ".join(
            f"{r[f'core_share_{name}']:.2f}" for name in ("heartbeats", "ownership", "requests")
        ),
        "lag ms": lambda r: f"{r['ownership_lag_p99_ms']:.0f}",
        "hit": lambda r: f"{r['hit']:.1%}",
        "TTFT ms": lambda r: f"{r['ttft_mean_ms']:.0f}",
        "off by ms": lambda r: f"{r['forecast_error_mean_ms']:.0f}",
    }
    table = Table(box=box.SIMPLE)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["runs"]:
        table.add_row(*(show(row) for show in columns.values()))
    console = Console(width=180)
    console.print(table)
    sizes = Table("nodes", "bytes a page", "match µs", "a node forgotten, ms per M pages")
    for row in report["index"]:
        figures = ("bytes_per_page", "match_us", "forget_ms_per_million_pages")
        sizes.add_row(str(row["nodes"]), *(f"{row[name]:.1f}" for name in figures))
    console.print(sizes)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()

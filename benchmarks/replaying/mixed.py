"""First tokens against gaps between tokens, for two nodes that share their work in several ways:
`make bench-route-mixed`.

The physics is in `benchmarks.replaying.serving`. `disaggregate` is one prefill and one decode node,
each with its own work; `replicas` are two decode nodes; `cost` is the pair again, where any node
does any work and a price decides; `greedy` is that pair without a price: each prompt goes where its
first token comes soonest. Numbers behind a name are `--max-itl-ms`. Loads:

    random   2,000 tokens in, 128 out
    chats    three of four requests are 300 tokens in, 256 out, every fourth 6,000 in, 128 out
    trace    the conversations of Mooncake's open trace, with what they have in common
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.replaying.serving import Served, Serving, ServingPlan
from benchmarks.route import TRACE
from kvrelay.bench.workloads.trace import BLOCK_TOKENS, TraceRequest, read_trace
from protocol.hashing import PAGE_HASH_BYTES, PageHash
from protocol.ids import Role

PAIR: tuple[Role, ...] = ("prefill", "decode")
REPLICAS: tuple[Role, ...] = ("decode", "decode")
PLANS = {
    "disaggregate": ServingPlan(PAIR, "disaggregate"),
    "replicas": ServingPlan(REPLICAS, "cost"),
    "replicas 10": ServingPlan(REPLICAS, "cost", 0.010),
    "greedy": ServingPlan(PAIR, "greedy"),
    "greedy 10": ServingPlan(PAIR, "greedy", 0.010),
    "cost": ServingPlan(PAIR, "cost"),
    "cost 10": ServingPlan(PAIR, "cost", 0.010),
    "cost 15": ServingPlan(PAIR, "cost", 0.015),
}
LOADS = {
    "random": (5.0, 10.0, 16.0),
    "chats": (8.0, 14.0, 20.0),
    "trace": (0.6, 1.0, 1.4),
}
"""Requests a second; of the trace, how many times as fast as it was recorded."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves every load in every way, and prints a table and a JSON line."""
    parser = argparse.ArgumentParser(prog="bench-route-mixed", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2_000, help="of each load")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and ties")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args(arguments)
    points = [(load, rate) for load, rates in LOADS.items() for rate in rates]
    rows = []
    for load, rate in track(points, console=Console(stderr=True), transient=True):
        trace = requests_of(load, rate, options.requests, options.seed)
        outcomes = {name: Serving(trace, plan).run() for name, plan in PLANS.items()}
        rows.append(
            {"load": load, "rate": rate}
            | {name: figures(served) for name, served in outcomes.items()}
        )
    _print_table(rows)
    report = {
        "bench": "route-mixed",
        "requests": options.requests,
        "seed": options.seed,
        "rows": rows,
        "machine": machine(),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def requests_of(load: str, rate: float, count: int, seed: int) -> list[TraceRequest]:
    """Returns the first `count` requests of a load."""
    if load == "trace":
        return read_trace(TRACE, rate)[:count]
    chance, arrival_s, requests = random.Random(seed), 0.0, []
    for number in range(count):
        arrival_s += chance.expovariate(rate)
        sizes = (2_000, 128)
        if load == "chats":
            sizes = (300, 256) if chance.random() < 0.75 else (6_000, 128)
        requests.append(TraceRequest(arrival_s, *sizes, _own_hashes(number, sizes[0])))
    return requests


def _own_hashes(number: int, num_tokens: int) -> list[PageHash]:
    count = -(-num_tokens // BLOCK_TOKENS)
    return [((number << 20) + i).to_bytes(PAGE_HASH_BYTES, "little") for i in range(count)]


def figures(served: Served) -> dict[str, float]:
    """Returns what clients saw, in milliseconds, and the share of prompts that were computed by the
    node which answered them."""
    first, gaps = sorted(served.first_token_s), sorted(served.gaps_s)
    return {
        "ttft_mean_ms": round(1e3 * sum(first) / len(first), 2),
        "ttft_p99_ms": round(1e3 * first[int(0.99 * len(first))], 2),
        "itl_mean_ms": round(1e3 * sum(gaps) / len(gaps), 2),
        "itl_p99_ms": round(1e3 * gaps[int(0.99 * len(gaps))], 2),
        "computed_where_answered": round(served.num_mixed / len(first), 3),
    }


def _print_table(rows: list[dict[str, object]]) -> None:
    table = Table(title="first token mean / p99, gap p99, in ms", box=box.SIMPLE)
    for heading in ("load", "rate", *PLANS):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [str(row["load"]), str(row["rate"])]
        for name in PLANS:
            figures = row[name]
            assert isinstance(figures, dict)
            cells.append(
                f"{figures['ttft_mean_ms']:.0f} / {figures['ttft_p99_ms']:.0f}, "
                f"{figures['itl_p99_ms']:.0f}"
            )
        table.add_row(*cells)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()

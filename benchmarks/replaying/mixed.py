"""First tokens against gaps between tokens, for two nodes that share their work in several ways:
`make bench-route-mixed`.

The physics is in `benchmarks.replaying.serving`. `disaggregate` is one prefill and one decode node,
each with its own work; `replicas` are two decode nodes; `cost` is the pair again, where any node
does any work and a price decides; `greedy` is that pair without a price: each prompt goes where its
first token comes soonest. Numbers behind a name are `--max-itl-ms`. In a second table the same
nodes compute prompts in the order of arrival. Loads:

    random   2,000 tokens in, 128 out
    chats    three of four requests are 300 tokens in, 256 out, every fourth 6,000 in, 128 out
    trace    the conversations of Mooncake's open trace, with what they have in common
    turns    32 conversations of 8 turns that begin at once: 2,000 tokens in, 300 more with each
             turn, 128 out, a pause of 0.2 to 0.8 s. Figures are those of the later turns
    mixed    32 chats, one request after another, 300 tokens in, 256 out, beside prompts of 12,000
             tokens, 16 out. Figures are those of the chats
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.replaying.serving import Served, Serving, ServingPlan, Workload
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
BY_ARRIVAL = {
    name: replace(PLANS[name], in_order_of_arrival=True)
    for name in ("disaggregate", "replicas", "cost", "cost 10")
}
LOADS = {
    "random": (5.0, 10.0, 16.0),
    "chats": (8.0, 14.0, 20.0),
    "trace": (0.6, 1.0, 1.4),
    "turns": (32, 64),
    "mixed": (1.0, 2.0),
}
"""Requests a second; of the trace, how many times as fast as it was recorded; for turns the number
of conversations, for mixed the long prompts a second."""
TURNS = 8
NUM_CHATS = 32
CHAT_S = 2.5
"""About how long one request of a chat takes."""
SMALL_PAGE_TOKENS = 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves every load in every way, and prints a table and a JSON line."""
    parser = argparse.ArgumentParser(prog="bench-route-mixed", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2_000, help="of each load")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and ties")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args(arguments)
    points = [(load, rate) for load, rates in LOADS.items() for rate in rates]
    rows: list[dict[str, object]] = []
    for load, rate in track(points, console=Console(stderr=True), transient=True):
        workload = workload_of(load, rate, options.requests, options.seed)
        row: dict[str, object] = {"load": load, "rate": rate}
        row |= {name: figures(Serving(workload, plan).run()) for name, plan in PLANS.items()}
        for name, plan in BY_ARRIVAL.items():
            row[f"{name}, by arrival"] = figures(Serving(workload, plan).run())
        rows.append(row)
    _print_table(rows, list(PLANS))
    _print_table(rows, [one for name in BY_ARRIVAL for one in (f"{name}, by arrival", name)])
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


def workload_of(load: str, rate: float, count: int, seed: int) -> Workload:
    """Returns a load of about `count` requests."""
    chance = random.Random(seed)
    if load == "trace":
        return Workload(read_trace(TRACE, rate)[:count])
    if load == "turns":
        return _turns(int(rate), chance)
    if load == "mixed":
        return _mixed(rate, count, chance)
    arrival_s, requests = 0.0, []
    for number in range(count):
        arrival_s += chance.expovariate(rate)
        sizes = (2_000, 128)
        if load == "chats":
            sizes = (300, 256) if chance.random() < 0.75 else (6_000, 128)
        requests.append(TraceRequest(arrival_s, *sizes, _own_hashes(number, sizes[0])))
    return Workload(requests)


def _turns(num_conversations: int, chance: random.Random) -> Workload:
    requests: list[TraceRequest] = []
    follows, firsts = {}, []
    for conversation in range(num_conversations):
        num_tokens, num_new, num_out = 2_000, 300, 128
        most_tokens = num_tokens + TURNS * (num_new + num_out)
        hashes = _own_hashes(conversation, most_tokens, SMALL_PAGE_TOKENS)
        for turn in range(TURNS):
            pause_s = 0.0
            if turn:
                pause_s = chance.uniform(0.2, 0.8)
                follows[len(requests)] = len(requests) - 1
            else:
                firsts.append(len(requests))
            requests.append(TraceRequest(pause_s, num_tokens, num_out, hashes))
            num_tokens += num_new + num_out
    others = frozenset(firsts)
    return Workload(requests, follows, others, SMALL_PAGE_TOKENS, hashes_answers=True)


def _mixed(rate: float, count: int, chance: random.Random) -> Workload:
    requests: list[TraceRequest] = []
    follows = {}
    for number in range(count):
        hashes = _own_hashes(number, 300, SMALL_PAGE_TOKENS)
        if number >= NUM_CHATS:
            follows[number] = number - NUM_CHATS
        requests.append(TraceRequest(0.0, 300, 256, hashes))
    arrival_s, ends_s = chance.random() / rate, count / NUM_CHATS * CHAT_S
    while arrival_s < ends_s:
        hashes = _own_hashes(len(requests), 12_000, SMALL_PAGE_TOKENS)
        requests.append(TraceRequest(arrival_s, 12_000, 16, hashes))
        arrival_s += 1.0 / rate
    return Workload(requests, follows, frozenset(range(count, len(requests))), SMALL_PAGE_TOKENS)


def _own_hashes(number: int, num_tokens: int, page_tokens: int = BLOCK_TOKENS) -> list[PageHash]:
    count = -(-num_tokens // page_tokens)
    return [((number << 20) + i).to_bytes(PAGE_HASH_BYTES, "little") for i in range(count)]


def figures(served: Served) -> dict[str, float]:
    """Returns what clients saw, in milliseconds, and the share of prompts that were computed by the
    node which answered them."""
    first, gaps = sorted(served.first_token_s), sorted(served.gaps_s)
    others = sorted(served.others_first_token_s)
    of_others = {}
    if others:
        of_others = {
            "others_ttft_mean_ms": round(1e3 * sum(others) / len(others), 2),
            "others_ttft_p99_ms": round(1e3 * others[int(0.99 * len(others))], 2),
        }
    return of_others | {
        "ttft_mean_ms": round(1e3 * sum(first) / len(first), 2),
        "ttft_p99_ms": round(1e3 * first[int(0.99 * len(first))], 2),
        "itl_mean_ms": round(1e3 * sum(gaps) / len(gaps), 2),
        "itl_p99_ms": round(1e3 * gaps[int(0.99 * len(gaps))], 2),
        "computed_where_answered": round(served.num_mixed / (len(first) + len(others)), 3),
    }


def _print_table(rows: list[dict[str, object]], plans: Sequence[str]) -> None:
    table = Table(title="first token mean / p99, gap p99, in ms", box=box.SIMPLE)
    for heading in ("load", "rate", *plans):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [str(row["load"]), str(row["rate"])]
        for name in plans:
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

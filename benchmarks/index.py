"""How fast the coordinator knows and decides, on one core: `python -m benchmarks.index`.

The index has 1M pages in chains of 512, owned by 64 nodes (half of them prefill nodes); a second
node owns a part of every tenth chain. Measured are pages stored per second (blobs of 256 pages are
split into hashes and stored, as events come), memory per page, `match` of a prompt of 512 pages,
and `match` plus `route`: expected pages, queues, and the costs of all candidates.

The physics: a stored page is a slice of a blob, a look-up and a store in a dictionary that is much
larger than the caches of the CPU, about 0.5 µs. A match is 10 to 20 look-ups of 0.2 µs where a
walk would be 512. A decision costs a candidate for each prefill node (two when a fetch is
possible) and one for each decode node, about 1 µs each. In the same run: a walk over one
dictionary per page, the structure that this one replaced.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from coordinator.ownership.index import PrefixIndex
from coordinator.routing.demand import Demand
from coordinator.routing.placement import Placement
from coordinator.routing.policies import CheapestRoute
from coordinator.routing.registry import Registry
from coordinator.routing.routed_request import RoutedRequest
from coordinator.routing.router import Router
from protocol.hashing import PAGE_HASH_BYTES, PageHash, split_hashes
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import Heartbeat, Load, NodeInfo

CHAIN_PAGES = 512
EVENT_PAGES = 256
LAYOUT = KVLayout(page_size=16, num_layers=32, num_kv_heads=8, head_dim=128, dtype="bfloat16")
PAGE_BYTES = PAGE_HASH_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-index", description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=5_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    report = {
        "bench": "index",
        "pages": options.pages,
        "nodes": options.nodes,
        **measure(options.pages, options.nodes, options.prompts),
        "machine": machine("msgspec"),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def measure(num_pages: int, num_nodes: int, num_prompts: int) -> dict[str, float]:
    """Builds the index, times everything, prints the table and returns its figures by name."""
    rng = random.Random(1)
    nodes = [Node(f"{'p' if i % 2 else 'd'}{i:02d}", 1) for i in range(num_nodes)]
    chains = [rng.randbytes(CHAIN_PAGES * PAGE_BYTES) for _ in range(num_pages // CHAIN_PAGES)]
    events = [
        (nodes[i % num_nodes], chain[start : start + EVENT_PAGES * PAGE_BYTES])
        for i, chain in enumerate(chains)
        for start in range(0, len(chain), EVENT_PAGES * PAGE_BYTES)
    ]
    for i in range(0, len(chains), 10):
        part = PAGE_BYTES * rng.randrange(1, CHAIN_PAGES)
        events.append((rng.choice(nodes), chains[i][:part]))
    index = PrefixIndex()
    gc.collect()
    before_bytes = _resident_bytes()
    started = time.perf_counter()
    for node, blob in events:
        index.stored(node, split_hashes(blob))
    stored_s = time.perf_counter() - started
    bytes_per_page = (_resident_bytes() - before_bytes) / index.num_unique_pages

    walked = {h: (n,) for n, blob in events[: len(events) // 20] for h in split_hashes(blob)}
    chosen = rng.choices(range(len(chains)), k=num_prompts)
    prompts = [split_hashes(chains[i]) for i in chosen]
    match_us = _microseconds(lambda hashes: index.match(hashes), prompts)
    walk_us = _microseconds(lambda hashes: _walk(walked, hashes), [split_hashes(chains[0])] * 200)

    placement = _placement(nodes, index)
    demands = [
        Demand(CHAIN_PAGES * 16 + 5, CHAIN_PAGES + 9, CHAIN_PAGES + 5, hashes) for hashes in prompts
    ]
    clock = iter(range(1 << 60))
    for i, demand in enumerate(demands[:500]):  # queues and expected pages as of a busy cluster
        routed = RoutedRequest(str(i), demand, 0.0)
        placement.book(routed, placement.route(demand, 0.0), 0.0)

    def decide(demand: Demand) -> None:
        index.stored(nodes[0], [])  # as if the index had changed: nothing is remembered
        placement.route(demand, next(clock) * 1e-4)

    route_us = _microseconds(decide, demands)

    started = time.perf_counter()
    index.forget(nodes[0])
    forget_s = time.perf_counter() - started
    figures = {
        "stored_pages_per_s": sum(len(blob) for _, blob in events) / PAGE_BYTES / stored_s,
        "bytes_per_page": bytes_per_page,
        "match_p50_us": statistics.median(match_us),
        "match_p99_us": _p99(match_us),
        "walk_p50_us": statistics.median(walk_us),
        "match_and_route_p50_us": statistics.median(route_us),
        "match_and_route_p99_us": _p99(route_us),
        "forget_a_node_ms": forget_s * 1e3,
    }
    _print_table(figures)
    return {name: round(value, 2) for name, value in figures.items()}


def _placement(nodes: list[Node], index: PrefixIndex) -> Placement:
    """Returns a placement over nodes that have just told random loads."""
    registry = Registry()
    rng = random.Random(2)
    for node in nodes:
        role: Role = "prefill" if node.name.startswith("p") else "decode"
        info = NodeInfo(
            node=node,
            control_address=f"{node.name}:1",
            data_addresses=(f"{node.name}:2",),
            layout=LAYOUT,
            model_fingerprint="model",
            num_pages=100_000,
            max_running_requests=64,
            max_queued_requests=1024,
            device="cuda:0",
        )
        load = Load(
            role=role,
            num_running=rng.randrange(32),
            queued_tokens=rng.randrange(20_000),
            free_pages=rng.randrange(1_000),
            cached_pages=50_000,
            prefill_tokens_per_s=rng.uniform(35_000, 40_000),
            step_s=0.01,
            link_bytes_per_s=2e10,
        )
        registry.heartbeat(Heartbeat(info, load, 3.0), 0.0)
    return Placement(registry, index, Router(CheapestRoute(rng.random)))


def _walk(owners: Mapping[PageHash, tuple[Node, ...]], hashes: list[PageHash]) -> int:
    """Returns how many leading pages some node owns all of, by looking up one page after another:
    what `PrefixIndex.match` replaced."""
    alive: set[Node] | None = None
    for depth, page_hash in enumerate(hashes):
        found = owners.get(page_hash, ())
        alive = set(found) if alive is None else alive & set(found)
        if not alive:
            return depth
    return len(hashes)


def _microseconds(run: Callable[[Any], object], arguments: list[Any]) -> list[float]:
    """Returns how long `run` takes with each of `arguments`, in microseconds."""
    times = []
    gc.collect()
    gc.freeze()  # as the coordinator does: the collector then leaves the index alone
    for argument in arguments:
        started = time.perf_counter()
        run(argument)
        times.append((time.perf_counter() - started) * 1e6)
    return times


def _p99(times: list[float]) -> float:
    return sorted(times)[int(0.99 * len(times))]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _print_table(figures: dict[str, float]) -> None:
    aims = {
        "stored_pages_per_s": "≥ 1,000,000",
        "bytes_per_page": "≤ 200",
        "match_p50_us": "≤ 16",
        "match_and_route_p99_us": "≤ 200",
    }
    table = Table(box=box.SIMPLE)
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("aim", justify="right")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,.1f}", aims.get(name, ""))
    Console().print(table)


if __name__ == "__main__":
    main()

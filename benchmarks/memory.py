"""Resident memory of every process of a cluster while it serves many requests.

A node's memory has three parts: the program with its libraries and weights, there from the start;
the KV pool, whose pages the system gives as they are first written; and what a step or a request
needs for its time. The first two have a size that is known, and the third is given back, so once
the pool has been written through and every kind of step has been seen the curve is flat: what a
process has after n requests does not depend on n. Whatever is kept per request, per prompt or per
length of a prompt shows as a slope.

So prompts are random (no two share a page) and of many lengths, log-uniform between SHORTEST and
LONGEST tokens: a cache that keeps something for every shape it has seen never sees the last one.
The pool holds a few dozens of them, so that pages are evicted all the time. The load is closed:
each client sends its next request when it has the answer.

The slope is that of the straight line of least squares through the second half of the curve, in
bytes per request. Memory comes in pages of 4 KiB and in larger pieces from the allocator, so a
slope of some 200 bytes, two megabytes in 10,000 requests, is noise.

Each dtype has a cluster of its own, as libraries keep different things for them: what they compile
for half precision depends on shapes.

    python -m benchmarks.memory [--requests 20000] [--quick] [--dtypes float32,bfloat16] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port

HOST = "127.0.0.1"
POOL_TOKENS = 8192
"""The KV pool of each node: 25 MB of float32 with the embedded model."""
VOCABULARY = 2_000
SHORTEST, LONGEST = 16, 768
MOST_NEW_TOKENS = 8
REQUESTS, QUICK_REQUESTS = 20_000, 3_000
NUM_READINGS = 40
REQUEST_TIMEOUT_S = 120.0
RESULTS = Path(__file__).parent / "results" / "memory.json"

Request = dict[str, Any]
"""The body of a POST /generate."""


@dataclass(frozen=True)
class Reading:
    """Resident bytes of each process when `num_requests` had been answered."""

    num_requests: int
    seconds: float
    rss_bytes: dict[str, int]


def requests_of(seed: int, count: int) -> Iterator[Request]:
    """Distinct prompts of mixed lengths, with answers of a few tokens."""
    chance = random.Random(seed)
    for _ in range(count):
        num_tokens = round(SHORTEST * (LONGEST / SHORTEST) ** chance.random())
        sampling = {
            "max_new_tokens": chance.randint(1, MOST_NEW_TOKENS),
            "temperature": 0,
            "ignore_eos": True,
        }
        ids = [chance.randrange(8, VOCABULARY) for _ in range(num_tokens)]
        yield {"input_ids": ids, "sampling_params": sampling}


async def send_all(
    url: str, requests: Iterator[Request], num_clients: int, on_answer: Callable[[], None]
) -> None:
    """Each client sends the next request when it has its answer. Raises at the first failure."""

    async def serve_one_client() -> None:
        for request in requests:
            response = await http.post("/generate", json=request)
            response.raise_for_status()
            on_answer()

    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S) as http:
        await asyncio.gather(*(serve_one_client() for _ in range(num_clients)))


def resident_bytes_of(pid: int) -> int:
    """Returns the resident memory of another process of this host."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has ended")


def measure(cluster: LocalCluster, num_requests: int, num_clients: int, seed: int) -> list[Reading]:
    """Readings at equal distances, the first one before the first request."""
    pids = {name: child.process.pid for name, child in cluster.children.items()}
    every = max(1, num_requests // NUM_READINGS)
    began = time.monotonic()
    readings: list[Reading] = []
    num_answered = 0

    def read() -> None:
        rss_bytes = {name: resident_bytes_of(pid) for name, pid in pids.items()}
        readings.append(Reading(num_answered, round(time.monotonic() - began, 1), rss_bytes))
        print_reading(readings[-1])

    def on_answer() -> None:
        nonlocal num_answered
        num_answered += 1
        if num_answered % every == 0:
            read()

    print("requests " + " ".join(f"{name + ' MB':>14}" for name in pids), flush=True)
    read()
    requests = requests_of(seed, num_requests)
    asyncio.run(send_all(cluster.url, requests, num_clients, on_answer))
    return readings


def slopes(readings: Sequence[Reading]) -> dict[str, float]:
    """Bytes per request of each process over the second half of the readings."""
    half = readings[len(readings) // 2 :]
    counts = [reading.num_requests for reading in half]
    return {
        name: round(float(np.polyfit(counts, [r.rss_bytes[name] for r in half], deg=1)[0]), 1)
        for name in half[0].rss_bytes
    }


def print_reading(reading: Reading) -> None:
    columns = " ".join(f"{num / 1e6:14.1f}" for num in reading.rss_bytes.values())
    print(f"{reading.num_requests:8} {columns}", flush=True)


def summary(readings: Sequence[Reading]) -> dict[str, dict[str, float]]:
    """What each process has at the start, in the middle and at the end, and its slope."""
    first, middle, last = readings[0], readings[len(readings) // 2], readings[-1]
    return {
        name: {
            "start_mb": round(first.rss_bytes[name] / 1e6, 1),
            "middle_mb": round(middle.rss_bytes[name] / 1e6, 1),
            "end_mb": round(last.rss_bytes[name] / 1e6, 1),
            "bytes_per_request": slope,
        }
        for name, slope in slopes(readings).items()
    }


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    table = Table(title=title, box=box.SIMPLE)
    table.add_column("process")
    for heading in ("start MB", "half-way MB", "end MB", "bytes/request in the second half"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{number:,.1f}" for number in row.values()))
    Console(width=100).print(table)


def run(dtype: str, num_requests: int, num_clients: int, seed: int) -> dict[str, Any]:
    """Measures one cluster; its part of the result."""
    plan = ClusterPlan(
        num_prefill=1,
        num_decode=1,
        host=HOST,
        port=free_port(),
        coordinator_flags={"policy": "disaggregate", "log_level": "warning"},
        node_flags={"max_total_tokens": str(POOL_TOKENS), "dtype": dtype},
    )
    with tempfile.TemporaryDirectory() as name, LocalCluster(plan, Path(name)) as cluster:
        readings = measure(cluster, num_requests, num_clients, seed)
    rows = summary(readings)
    print_table(f"resident memory over {num_requests:,} requests, {dtype}", rows)
    return {
        "dtype": dtype,
        "processes": rows,
        "curve": [asdict(reading) for reading in readings],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Resident memory while a cluster serves.")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REQUESTS} requests")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of the nodes")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    num_requests = QUICK_REQUESTS if given.quick else given.requests
    dtypes = given.dtypes.split(",")
    result = {
        "bench": "memory",
        "machine": machine("torch", "numpy", "msgspec", "pyzmq", "redis", "uvicorn"),
        "requests": num_requests,
        "clients": given.clients,
        "pool_tokens": POOL_TOKENS,
        "runs": [run(dtype, num_requests, given.clients, given.seed) for dtype in dtypes],
    }
    if given.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

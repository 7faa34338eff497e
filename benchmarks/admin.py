"""How long the admin API takes on a large cluster: a million owned pages on 64 nodes.

A real Service and app, without sockets: httpx calls the app in this process, which costs each
answer some 0.3 ms (`health` has that and nothing else). No answer may look at every page: a walk
over a million pages takes 30 ms, in which no request is routed, and the goal is 20 ms for
`stats`. `stats`, `nodes` and `explain` cost what 64 nodes cost; `prefixes` looks up the owners of
as many pages as are asked for.

    .venv/bin/python -m benchmarks.admin [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.http.app import create_app
from coordinator.service import Service
from infra.models import EMBEDDED
from infra.ports import free_port
from protocol.channel import Channel
from protocol.hashing import PAGE_HASH_BYTES, PageHash, PageHasher
from protocol.ids import Node, Role
from protocol.layout import KVLayout
from protocol.messages import Heartbeat, Load, NodeInfo

NUM_NODES = 64
NUM_PAGES = 1_000_000
REPLICATED_SHARE = 0.25
"""The share of chains that a second node owns too."""
CHAIN_PAGES = 250
"""The length of each prefix, in pages."""
LEASE_S = 600.0
PROMPT_TOKENS = 2_000
LAYOUT = KVLayout(num_layers=16, page_size=16, num_kv_heads=8, head_dim=64, dtype="bfloat16")
MODEL = "benchmark"
RESULTS = Path(__file__).parent / "results" / "admin.json"
GOAL_MS = 20.0
"""The longest that `stats` may take."""


def heartbeat(number: int) -> Heartbeat:
    """Returns the heartbeat of node `number`; the first half of the nodes are prefill nodes."""
    role: Role = "prefill" if number < NUM_NODES // 2 else "decode"
    info = NodeInfo(
        node=node_of(number),
        control_address=f"tcp://127.0.0.1:{number + 1}",
        data_addresses=(f"127.0.0.1:{number + 1}",),
        layout=LAYOUT,
        model_fingerprint=MODEL,
        num_pages=1 << 16,
        max_running_requests=256,
        max_queued_requests=256,
        device="cuda:0",
    )
    load = Load(
        role=role,
        free_pages=1 << 15,
        cached_pages=1 << 15,
        prefill_tokens_per_s=40e3,
        step_s=0.01,
    )
    return Heartbeat(info, load, LEASE_S)


def node_of(number: int) -> Node:
    """Returns the identity of node `number`."""
    return Node(f"{'p' if number < NUM_NODES // 2 else 'd'}{number}", 1)


def fill(service: Service, chance: random.Random, prompt: list[int]) -> None:
    """Makes the service know all nodes and their pages, some pages of `prompt` on three nodes, and
    as many hot prefixes as it keeps."""
    for number in range(NUM_NODES):
        service.handle(heartbeat(number))
    for _ in range(NUM_PAGES // CHAIN_PAGES):
        chain = [chance.randbytes(PAGE_HASH_BYTES) for _ in range(CHAIN_PAGES)]
        owners = chance.sample(range(NUM_NODES), 2)
        service.core.index.stored(node_of(owners[0]), chain)
        if chance.random() < REPLICATED_SHARE:
            service.core.index.stored(node_of(owners[1]), chain)
        note_hits(service, chain, chance)
    hashes = PageHasher(MODEL, LAYOUT).hashes(prompt)
    for owner, depth in ((0, 100), (1, 50), (NUM_NODES - 1, 120)):
        service.core.index.stored(node_of(owner), hashes[:depth])


def note_hits(service: Service, chain: list[PageHash], chance: random.Random) -> None:
    """Counts one to three hits of the chain's first page, as requests would."""
    tokens = [chance.randrange(100) for _ in range(LAYOUT.page_size)]
    for _ in range(chance.randrange(1, 4)):
        service.core.statistics.hot_prefixes.hit(chain[0], tokens, False, time.monotonic())


async def times_ms(call: Callable[[], Awaitable[httpx.Response]], count: int) -> list[float]:
    """Returns the durations of `count` calls in milliseconds, the shortest first."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        response = await call()
        times.append((time.perf_counter() - began) * 1e3)
        assert response.status_code == 200, response.text
    return sorted(times)


async def measure(count: int) -> dict[str, Any]:
    """Returns the figures of the report: each answer's median and p99 over `count` calls."""
    config = CoordinatorConfig(
        redis_url=f"redis://127.0.0.1:{free_port()}", show_prompt_words=True, routing_seed=1
    )
    service = Service(config, Tokenizer(Path(EMBEDDED)), Channel("127.0.0.1"))
    chance = random.Random(7)
    prompt = [chance.randrange(100) for _ in range(PROMPT_TOKENS)]
    await service.start()
    try:
        fill(service, chance, prompt)
        gc.freeze()  # as the server does
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://bench") as client:
            body = {"input_ids": prompt}
            calls: dict[str, Callable[[], Awaitable[httpx.Response]]] = {
                "health": lambda: client.get("/health"),
                "stats": lambda: client.get("/admin/cache/stats"),
                "prefixes (20)": lambda: client.get("/admin/cache/prefixes"),
                "prefixes (1000)": lambda: client.get("/admin/cache/prefixes?limit=1000"),
                "nodes": lambda: client.get("/admin/nodes"),
                "explain": lambda: client.post("/admin/route/explain", json=body),
            }
            figures = {}
            for name, call in calls.items():
                await times_ms(call, 3)
                times = await times_ms(call, count)
                figures[name] = {
                    "p50_ms": round(times[len(times) // 2], 3),
                    "p99_ms": round(times[int(len(times) * 0.99)], 3),
                }
        return {
            "nodes": NUM_NODES,
            "unique_pages": service.core.index.num_unique_pages,
            "owned_pages": service.core.index.num_owned_pages,
            "index_bytes": service.core.index.num_bytes,
            "calls": count,
            "answers": figures,
        }
    finally:
        await service.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="The admin API with a million owned pages.")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    figures = asyncio.run(measure(given.calls))
    table = Table(title=f"admin API, {figures['unique_pages']} pages on {NUM_NODES} nodes")
    table.box = box.SIMPLE
    table.add_column("answer")
    for heading in ("p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for name, answer in figures["answers"].items():
        table.add_row(name, f"{answer['p50_ms']:.2f}", f"{answer['p99_ms']:.2f}")
    Console().print(table)
    report = {"bench": "admin", "goal_ms": GOAL_MS, **figures}
    report["machine"] = machine("fastapi", "starlette", "httpx", "msgspec")
    report["load_average"] = round(os.getloadavg()[0], 2)
    if given.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

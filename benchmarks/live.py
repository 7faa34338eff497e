"""`bench-route --live`: the trace through a real coordinator over HTTP, beside its replay.

A coordinator process, a real Redis and one process for each stub node
(`benchmarks.clusters.modelled_node`: the product's own node in modelled time). A block of
512 tokens of the trace becomes a page of 16 token ids, and rates are divided by the same 32, so
times are those of the replay's model. The clock is real: a request takes as long as it would.

What is added to the replay's time to the first token is everything that the replay leaves out:
HTTP, tokens as JSON, three control messages, ownership over Redis, heartbeats, turns of nodes
(a step has one page), and processes that share this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.replaying import replay as model
from benchmarks.replaying.replay import Replay, Settings
from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port
from infra.process import Child
from kvrelay.bench.workloads.trace import BLOCK_TOKENS, TraceRequest
from protocol.hashing import PageHash

PAGE_SIZE = 16
SCALE = BLOCK_TOKENS // PAGE_SIZE
VOCABULARY = 2_000
HOST = "127.0.0.1"
NUM_DECODE = 2
UNLIMITED_PAGES = 1 << 20
REQUEST_TIMEOUT_S = 300.0


def replay_live(trace: list[TraceRequest], options: argparse.Namespace) -> None:
    """Sends the trace to a live cluster under each policy, beside its replay. Prints a table with
    one row per policy, and a JSON line."""
    scaled = [_scaled(request) for request in trace]
    rows = {}
    for policy in options.policies.split(","):
        settings = Settings(
            options.nodes, options.pages_per_node, policy, options.event_lag, seed=options.seed
        )
        outcome = Replay(scaled, settings).run()
        with stub_cluster(policy, options.nodes, options.pages_per_node) as url:
            answers = asyncio.run(send_all(url, scaled))
        rows[policy] = _figures(scaled, answers) | {
            "replay_hit_fetched": round(outcome.hit_fetched, 4),
            "replay_ttft_mean_s": round(outcome.mean_s, 4),
        }
    _print_table(rows)
    report = {
        "bench": "route-live",
        "trace": options.trace.name,
        "requests": len(trace),
        "nodes": options.nodes,
        "pages_per_node": options.pages_per_node,
        "speedup": options.speedup,
        "policies": rows,
        "machine": machine("uvicorn", "uvloop", "redis", "pyzmq"),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


@contextmanager
def stub_cluster(policy: str, num_prefill: int, pages_per_node: int) -> Iterator[str]:
    """Runs a coordinator before stub nodes; yields its URL. `pages_per_node` 0 is unlimited."""
    plan = ClusterPlan(
        num_prefill=0,
        num_decode=0,
        host=HOST,
        port=free_port(),
        coordinator_flags={
            "policy": policy,
            "routing_seed": "1",
            "log_level": "warning",
        },
    )
    rates = {
        "prefill_tokens_per_s": model.PREFILL_TOKENS_PER_S / SCALE,
        "prefill_base_s": model.PREFILL_BASE_S,
        "fetch_tokens_per_s": model.FETCH_TOKENS_PER_S / SCALE,
        "fetch_base_s": model.FETCH_BASE_S,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in rates.items()]
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalCluster(plan, Path(directory)) as cluster,
    ):

        def start(role: str, name: str, num_pages: int, *more: str) -> None:
            words = [sys.executable, "-m", "benchmarks.clusters.stub_nodes", role, "--name", name]
            words += ["--redis-url", cluster.redis_url, "--num-pages", str(num_pages)]
            words += ["--simulate", *more]
            log_file = Path(directory) / f"{name}.log"
            cluster.children[name] = Child(name, words, log_file, lambda name, line: None)

        for i in range(num_prefill):
            start("prefill", f"p{i:02d}", pages_per_node or UNLIMITED_PAGES, *flags)
        for i in range(NUM_DECODE):
            start("decode", f"d{i}", UNLIMITED_PAGES)
        cluster.wait_for_nodes()
        yield cluster.url


async def send_all(url: str, trace: list[TraceRequest]) -> list[tuple[float, dict[str, Any]]]:
    """Sends every request at its time. Returns for each the seconds until its answer of one token
    was here, counted from when it was due, and the answer's meta_info."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits) as client:
        began = time.monotonic() + 0.5

        async def send(request: TraceRequest) -> tuple[float, dict[str, Any]]:
            body = {
                "input_ids": _token_ids(request),
                "sampling_params": {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True},
            }
            due = began + request.arrival_s
            await asyncio.sleep(due - time.monotonic())
            response = await client.post("/generate", json=body)
            seconds = time.monotonic() - due
            response.raise_for_status()
            return seconds, dict(response.json()["meta_info"])

        return await asyncio.gather(*(send(request) for request in trace))


def _scaled(request: TraceRequest) -> TraceRequest:
    """Returns the request without the tokens behind its last full block. Nodes hit whole pages
    only, so the replay must count the same."""
    num_tokens = len(request.hashes) * BLOCK_TOKENS
    return TraceRequest(request.arrival_s, num_tokens, 1, request.hashes)


def _token_ids(request: TraceRequest) -> list[int]:
    return [token for block in request.hashes for token in _page_tokens(block)]


def _page_tokens(block: PageHash) -> list[int]:
    """Returns 16 token ids that no other block has: the digits of the block's number."""
    number = int.from_bytes(block, "little")
    tokens = []
    for _ in range(PAGE_SIZE):
        tokens.append(1 + number % VOCABULARY)
        number //= VOCABULARY
    return tokens


def _figures(
    trace: list[TraceRequest], answers: list[tuple[float, dict[str, Any]]]
) -> dict[str, float]:
    """Returns the shares of hits and the times to the first token, of one policy."""
    times = sorted(seconds for seconds, _ in answers)
    prompt_tokens = sum(meta["prompt_tokens"] for _, meta in answers)
    cached = sum(meta["cached_tokens"] for _, meta in answers)
    fetched = sum(meta["fetched_tokens"] for _, meta in answers)
    return {
        "hit": round((cached - fetched) / prompt_tokens, 4),
        "hit_fetched": round(cached / prompt_tokens, 4),
        "ttft_mean_s": round(statistics.fmean(times), 4),
        "ttft_p50_s": round(times[len(times) // 2], 4),
        "ttft_p99_s": round(times[int(0.99 * len(times))], 4),
    }


def _print_table(rows: dict[str, dict[str, float]]) -> None:
    table = Table(title="live, beside the replay of the same requests", box=box.SIMPLE)
    table.add_column("policy")
    for heading in ("hit", "+ fetched", "replay", "mean s", "replay", "added ms", "p50", "p99"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['hit']:.1%}",
            f"{row['hit_fetched']:.1%}",
            f"{row['replay_hit_fetched']:.1%}",
            f"{row['ttft_mean_s']:.3f}",
            f"{row['replay_ttft_mean_s']:.3f}",
            f"{(row['ttft_mean_s'] - row['replay_ttft_mean_s']) * 1e3:.1f}",
            f"{row['ttft_p50_s']:.3f}",
            f"{row['ttft_p99_s']:.3f}",
        )
    Console(width=100).print(table)

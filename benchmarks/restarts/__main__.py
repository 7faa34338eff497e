"""Restarts of every kind of process under load, and what clients see of them, window by window.

Prompts share beginnings of 512 tokens, of which there are more than one node's pool holds, so that
a router that does not know who owns what would lose hits. Requests arrive at random times whether
or not others have ended. One after the other the only coordinator, Redis (which keeps nothing on
disk), a prefill node and a decode node are killed with SIGKILL and started again at once. What a
node had cached is gone with it, and has to be computed again: its window's hit ratio falls by as
much. The coordinator and Redis hold no pages, so their restarts should cost no hits: the
coordinator reads from Redis who owns what, and nodes tell an empty Redis.

A client of a coordinator that is away tries again, as `kvrelay.Client` does, and its waiting counts
as time to the first token. With two coordinators behind a proxy nobody waits; `make chaos` has
that.

    python -m benchmarks.restarts [--rate 8] [--calm 20] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.restarts.load import SHARE_OF_PREFIX, Seen, ask_for
from benchmarks.restarts.picture import picture_of
from benchmarks.restarts.restarting import Restart, restart
from benchmarks.restarts.windows import Window, windows_of
from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port

VICTIMS = ("coordinator", "redis", "p0", "d0")
POOL_TOKENS = 8192
"""Of each node: two thirds of the shared beginnings."""
WARM_UP_S = 10.0
WINDOW_S = 5.0
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "restart-drill.json"
PICTURE = ROOT / "docs" / "pictures" / "restart-drill.svg"


def drill(rate: float, calm_s: float, seed: int) -> tuple[list[Seen], list[Restart]]:
    """Runs a cluster under load, restarts each victim after another `calm_s`, and returns what
    clients saw."""
    plan = ClusterPlan(
        num_prefill=2,
        num_decode=2,
        host="127.0.0.1",
        port=free_port(),
        coordinator_flags={"policy": "disaggregate", "log_level": "warning"},
        node_flags={"max_total_tokens": str(POOL_TOKENS)},
    )
    with (
        tempfile.TemporaryDirectory() as logs,
        LocalCluster(plan, Path(logs)) as cluster,
        ThreadPoolExecutor(1) as pool,
    ):
        asyncio.run(ask_for(cluster.url, WARM_UP_S, rate, seed))
        seconds = calm_s * (len(VICTIMS) + 1)
        began = time.monotonic()
        # The load has the other thread: a process ends with the thread that has started it.
        load = pool.submit(lambda: asyncio.run(ask_for(cluster.url, seconds, rate, seed)))
        restarts = []
        for number, name in enumerate(VICTIMS, start=1):
            time.sleep(max(0.0, began + number * calm_s - time.monotonic()))
            restarts.append(restart(cluster, name, began))
            print(f"{name} killed, back after {restarts[-1].back_after_s} s", flush=True)
        return load.result(), restarts


def print_table(windows: list[Window], restarts: list[Restart]) -> None:
    table = Table(title="restarts under load", box=box.SIMPLE)
    table.add_column("from, s")
    for heading in ("requests", "failed", "hit ratio", "p50 ms", "p90 ms"):
        table.add_column(heading, justify="right")
    table.add_column("killed")
    for window in windows:
        killed = [r.process for r in restarts if 0 <= r.at_s - window.at_s < WINDOW_S]
        table.add_row(*(str(value) for value in asdict(window).values()), " ".join(killed))
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Restarts under load, window by window.")
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second")
    parser.add_argument("--calm", type=float, default=20.0, help="seconds before each restart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write result and picture")
    given = parser.parse_args()
    seen, restarts = drill(given.rate, given.calm, given.seed)
    windows = windows_of(seen, given.calm * (len(VICTIMS) + 1), WINDOW_S)
    print_table(windows, restarts)
    result = {
        "bench": "restart-drill",
        "machine": machine("torch", "redis", "pyzmq", "httpx"),
        "rate": given.rate,
        "pool_tokens": POOL_TOKENS,
        "most_hits": round(SHARE_OF_PREFIX, 3),
        "restarts": [asdict(one) for one in restarts],
        "window_s": WINDOW_S,
        "windows": [asdict(window) for window in windows],
    }
    if given.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(picture_of(windows, restarts, WINDOW_S))
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""What the ownership record costs in Redis, and how soon a coordinator knows it.

    .venv/bin/python -m benchmarks.ownership                       # 1M pages on each of 16 nodes
    .venv/bin/python -m benchmarks.ownership --pages 20000 --nodes 2 --seconds 2

Everything runs against a private redis-server of this host, written by the real scripts. Physics:

* memory: a set member is a 24-byte dictionary entry, a pointer to it and a 16-byte string with its
  header and the allocator's rounding: 70 to 80 bytes. The stream keeps the last changes on top, 16
  bytes a hash. Every node owns the same pages here; Redis shares nothing between sets.
* warm start: a set crosses as blobs of 16 bytes a page; the time is that of SSCAN in Redis and of
  one dictionary store per page in Python, about 0.5 µs each. A blob of 4,000 hashes is applied in
  one go (~3 ms); longer stalls are Python's own: a dictionary that grows is copied.
* visibility: one script call of the publisher, one XREAD of the follower, and the queueing between
  them. Publishers and another coordinator are processes of their own; all share this host's cores.
* match: one round trip (~0.1 ms) and log2(pages) probes per node; a found prefix is verified page
  by page in Redis. 512 SISMEMBER cost the client 512 commands and replies.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from coordinator.ownership.follower import OwnershipFollower
from coordinator.ownership.index import PrefixIndex
from coordinator.ownership.redis_index import RedisIndex
from engine.cache.prefix_cache import CacheChange
from infra.process import Child
from infra.redis_server import server_command
from node.shell.publisher import OwnershipPublisher
from protocol.hashing import PAGE_HASH_BYTES, PageHash, join_hashes, split_hashes
from protocol.ids import Node
from protocol.layout import KVLayout
from protocol.messages import NodeInfo
from protocol.redis import ownership
from protocol.redis.client import connect, connect_async

CHAIN_PAGES = 512
"""The length of prompts, and of a change of ownership, in pages."""
LEASE_S = 600.0
TIMEOUT_S = 30.0
PUBLISHERS = 4
TICK_S = 0.01
"""The time between two changes of a publisher. Real nodes publish after every step."""
WARM_UP_S = 1.0
MARK = b"\xffmarked\xff"
"""The first 8 bytes of a page hash whose other 8 are the time at which it was published."""
MATCHES = 500
"""How many matches are timed."""
RESULT = Path(__file__).parent / "results" / "ownership.json"


@contextmanager
def private_redis(directory: Path) -> Iterator[str]:
    """Runs a Redis server; yields its URL."""
    server = server_command(directory)
    child = Child("redis", server.command, directory / "redis.log", lambda name, line: None)
    try:
        server.wait_until_ready(child)
        yield server.url
    finally:
        child.terminate()
        child.wait()


def info_of(node: Node) -> NodeInfo:
    """Returns what a node would tell of itself; nothing here depends on its values."""
    return NodeInfo(
        node=node,
        control_address=f"tcp://{node.name}:1",
        data_addresses=(f"{node.name}:2",),
        layout=KVLayout(32, 16, 8, 128, "bfloat16"),
        model_fingerprint="model",
        num_pages=1_000_000,
        max_running_requests=8,
        max_queued_requests=16,
        device="cpu",
    )


def random_hashes(num_pages: int, seed: int) -> list[PageHash]:
    """Returns page hashes that depend on the seed alone."""
    return split_hashes(np.random.default_rng(seed).bytes(num_pages * PAGE_HASH_BYTES))


def chains_of(hashes: list[PageHash]) -> Iterator[list[PageHash]]:
    """Yields the hashes CHAIN_PAGES at a time."""
    for start in range(0, len(hashes), CHAIN_PAGES):
        yield hashes[start : start + CHAIN_PAGES]


def fill(client: Any, node: Node, hashes: list[PageHash]) -> float:
    """Registers the node and stores its pages, one change per chain. Returns the seconds taken."""

    def call(script: str, *args: int | str | bytes) -> None:
        run = client.register_script(script)
        result = run(
            ownership.NodeKeys.of(node).all(), [node.incarnation, int(LEASE_S * 1000), *args]
        )
        assert result == ownership.APPLIED

    began = time.perf_counter()
    call(ownership.REGISTER, msgspec.json.encode(info_of(node)))
    call(ownership.COMPLETE, *ownership.Change(1, True, b"", b"").args())
    for number, chain in enumerate(chains_of(hashes), start=2):
        call(ownership.APPLY, *ownership.Change(number, False, join_hashes(chain), b"").args())
    client.sadd(ownership.NODES_KEY, node.name)
    return time.perf_counter() - began


class Stalls:
    """Measures how long the event loop is kept from its other tasks."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        """The longest delay so far of a task that wants to run every millisecond."""

    async def watch(self) -> None:
        """Measures until it is cancelled."""
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest_s = max(self.longest_s, time.perf_counter() - before - 0.001)


async def during(work: Awaitable[None]) -> tuple[float, float]:
    """Awaits `work`. Returns the seconds it took, and the longest stall of the loop in them."""
    stalls = Stalls()
    watching = asyncio.create_task(stalls.watch())
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    await work
    took_s = time.perf_counter() - began
    await asyncio.sleep(0.002)
    watching.cancel()
    return took_s, stalls.longest_s


async def warm_start(url: str, num_pages: int, nodes: list[Node]) -> dict[str, float]:
    """Starts a new coordinator's follower. Returns how long it takes to know `num_pages` on every
    node, then how long it takes to read one node's set again, each with the longest stall."""
    index = PrefixIndex()
    follower = OwnershipFollower(url, "tcp://bench:1", index)
    following = asyncio.create_task(follower.run())

    async def know_all() -> None:
        while not all(index.num_pages(node) == num_pages for node in nodes):
            await asyncio.sleep(0.002)

    try:
        warm_s, stall_s = await during(know_all())
        reload_s, reload_stall_s = await during(follower.reload(nodes[0]))
        assert index.num_unique_pages == num_pages
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await follower.close()
    return {
        "warm_s": warm_s,
        "stall_ms": stall_s * 1e3,
        "reload_s": reload_s,
        "reload_stall_ms": reload_stall_s * 1e3,
    }


async def median_ms(call: Callable[[], Awaitable[Any]], repeats: int) -> float:
    """Returns the median duration of `repeats` calls in milliseconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


async def match_times(
    url: str, everywhere: list[PageHash], alone: list[PageHash], node: Node
) -> Any:
    """Times matches in Redis of two prompts of 512 pages: all nodes own `everywhere`, only `node`
    owns `alone`. Beside them, one SISMEMBER per page, which such a match replaces."""
    client = connect_async(url, TIMEOUT_S)
    record = RedisIndex(client)
    assert await record.match(alone) == {node: len(alone)}
    pages = ownership.NodeKeys.of(node).pages

    async def ask_for_each() -> None:
        pipe = client.pipeline(transaction=False)
        for page_hash in alone:
            pipe.sismember(pages, page_hash)
        assert all(await pipe.execute())

    result = {
        "match_one_owner_ms": await median_ms(lambda: record.match(alone), MATCHES),
        "match_all_owners_ms": await median_ms(lambda: record.match(everywhere), MATCHES),
        "sismember_pipelined_ms": await median_ms(ask_for_each, MATCHES // 5),
    }
    await client.aclose()
    return result


class MarkedIndex(PrefixIndex):
    """An index that counts changed pages, and notes the age of marked ones as they become known."""

    def __init__(self) -> None:
        super().__init__()
        self.ages_s: list[float] = []
        """Seconds from the publishing of each marked page until it was stored here."""
        self.num_changed = 0

    def stored(self, node: Node, hashes: Iterable[PageHash]) -> None:
        hashes = list(hashes)
        super().stored(node, hashes)
        self.num_changed += len(hashes)
        now = time.monotonic()
        for page_hash in hashes:
            if page_hash.startswith(MARK):
                self.ages_s.append(now - struct.unpack("<d", page_hash[8:])[0])

    def removed(self, node: Node, hashes: Iterable[PageHash]) -> None:
        hashes = list(hashes)
        super().removed(node, hashes)
        self.num_changed += len(hashes)


def publish_for(url: str, number: int, rate: float, seconds: float) -> None:
    """Plays one node, in a process of its own, which changes `rate` pages a second: half of the
    changes store pages, half remove some. The first page of every change is marked."""
    publisher = OwnershipPublisher(url, info_of(Node(f"p{number}", 1)), 3.0, lambda: None)
    publisher.start()
    per_tick = max(1, int(rate * TICK_S / 2))
    hashes = random_hashes(per_tick * 2_000, seed=number)
    owned: list[list[PageHash]] = []
    next_tick = time.monotonic()
    end = next_tick + seconds
    tick = 0
    while time.monotonic() < end:
        start = tick * per_tick % len(hashes)
        mark = MARK + struct.pack("<d", time.monotonic())
        owned.append([mark, *hashes[start : start + per_tick - 1]])
        removed = owned.pop(0)[::-1] if len(owned) > 50 else []
        publisher.publish([CacheChange(removed=removed, stored=owned[-1])])
        tick += 1
        next_tick += TICK_S
        time.sleep(max(0.0, next_tick - time.monotonic()))
    publisher.close()


def follow_for(url: str, seconds: float) -> None:
    """Plays the first coordinator, in a process of its own, so that Redis serves two."""

    async def follow() -> None:
        follower = OwnershipFollower(url, "tcp://first:1", PrefixIndex())
        try:
            await asyncio.wait_for(follower.run(), seconds)
        except asyncio.TimeoutError:
            await follower.close()

    asyncio.run(follow())


async def visibility(url: str, rate: float, seconds: float) -> dict[str, float]:
    """Returns how old changes are when a second coordinator knows them, while several nodes publish
    `rate` changed pages a second in all."""
    spawn = multiprocessing.get_context("spawn")
    total_s = seconds + WARM_UP_S
    others = [spawn.Process(target=follow_for, args=(url, total_s), daemon=True)]
    for number in range(PUBLISHERS):
        args = (url, number, rate / PUBLISHERS, total_s)
        others.append(spawn.Process(target=publish_for, args=args, daemon=True))
    index = MarkedIndex()
    follower = OwnershipFollower(url, "tcp://second:1", index)
    following = asyncio.create_task(follower.run())
    for process in others:
        process.start()
    while len(index.ages_s) < PUBLISHERS:
        await asyncio.sleep(0.01)
    await asyncio.sleep(WARM_UP_S)
    index.ages_s.clear()
    before, began = index.num_changed, time.perf_counter()
    await asyncio.sleep(max(1.0, seconds - WARM_UP_S))
    took_s = time.perf_counter() - began
    ages_s, num_changed = list(index.ages_s), index.num_changed - before
    for process in others:
        await asyncio.to_thread(process.join)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await follower.close()
    p50, p99 = np.percentile(ages_s, [50, 99])
    return {
        "changed_pages_per_s": num_changed / took_s,
        "changes": len(ages_s),
        "visible_p50_ms": p50 * 1e3,
        "visible_p99_ms": p99 * 1e3,
        "visible_max_ms": max(ages_s) * 1e3,
    }


def measure(pages: int, num_nodes: int, rate: float, seconds: float) -> dict[str, Any]:
    """Runs everything and returns the figures. Every node owns the same `pages` pages."""
    nodes = [Node(f"n{i:02}", 1) for i in range(num_nodes)]
    hashes = random_hashes(pages, seed=0)
    result: dict[str, Any] = {"pages": pages, "nodes": num_nodes}
    with tempfile.TemporaryDirectory() as directory:
        with private_redis(Path(directory)) as url:
            client = connect(url, TIMEOUT_S)
            result["redis_server"] = client.info("server")["redis_version"]
            empty = client.info("memory")["used_memory"]
            fill_s = fill(client, nodes[0], hashes)
            result["fill_pages_per_s"] = pages / fill_s
            result["one_node"] = asyncio.run(warm_start(url, pages, nodes[:1]))
            for node in nodes[1:]:
                fill(client, node, hashes)
            used = client.info("memory")["used_memory"] - empty
            changes = ownership.NodeKeys.of(nodes[0]).changes
            result["bytes_per_page"] = used / (pages * num_nodes)
            result["bytes_per_page_of_stream"] = client.memory_usage(changes, samples=0) / pages
            gc.collect()  # so that no collection of what was made so far falls into the stalls
            result["all_nodes"] = asyncio.run(warm_start(url, pages, nodes))
            alone = random_hashes(CHAIN_PAGES, seed=1)
            client.sadd(ownership.NodeKeys.of(nodes[0]).pages, *alone)
            everywhere = hashes[:CHAIN_PAGES]
            result["match"] = asyncio.run(match_times(url, everywhere, alone, nodes[0]))
            client.close()
        with private_redis(Path(directory)) as url:
            result["visibility"] = asyncio.run(visibility(url, rate, seconds))
    return result


def table_of(result: dict[str, Any]) -> Table:
    """Returns the figures as a table for people, with what they should be."""
    table = Table("what", "measured", "aim", title="Page ownership through Redis")
    pages, nodes = f"{result['pages']:,} pages", f"{result['nodes']} nodes"
    one, every = result["one_node"], result["all_nodes"]
    match, seen = result["match"], result["visibility"]
    rows = [
        (f"Redis memory per owned page ({nodes})", f"{result['bytes_per_page']:.1f} B", "≤ 100 B"),
        ("  of it the stream of changes", f"{result['bytes_per_page_of_stream']:.1f} B", ""),
        ("writing, one writer", f"{result['fill_pages_per_s']:,.0f} pages/s", ""),
        (f"warm start, {pages} on 1 node", f"{one['warm_s']:.2f} s", "seconds"),
        ("  longest stall of its loop", f"{one['stall_ms']:.1f} ms", ""),
        ("the set read again", f"{one['reload_s']:.2f} s", ""),
        ("  longest stall of its loop", f"{one['reload_stall_ms']:.1f} ms", ""),
        (f"warm start, {pages} on {nodes}", f"{every['warm_s']:.2f} s", ""),
        ("  longest stall of its loop", f"{every['stall_ms']:.1f} ms", ""),
        (
            f"published → known to coordinator 2, {seen['changed_pages_per_s']:,.0f} pages/s",
            f"p50 {seen['visible_p50_ms']:.1f}, p99 {seen['visible_p99_ms']:.1f} ms",
            "p99 ≤ 100 ms",
        ),
        ("match of 512 pages, 1 owner", f"p50 {match['match_one_owner_ms']:.2f} ms", ""),
        (f"match of 512 pages, {nodes} own them", f"p50 {match['match_all_owners_ms']:.2f} ms", ""),
        ("512 pipelined SISMEMBER of 1 node", f"p50 {match['sismember_pipelined_ms']:.2f} ms", ""),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=1_000_000, help="pages that each node owns")
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rate", type=float, default=50_000.0, help="changed pages/s, all nodes")
    parser.add_argument("--seconds", type=float, default=10.0, help="of publishing")
    parser.add_argument("--save", action="store_true", help=f"keep the result in {RESULT.name}")
    options = parser.parse_args()
    load = {"load_before": os.getloadavg()[0]}
    figures = measure(options.pages, options.nodes, options.rate, options.seconds)
    result = machine("redis") | load | figures
    Console().print(table_of(result))
    line = json.dumps(rounded(result))
    if options.save:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(line + "\n", encoding="utf-8")
    print(line)


def rounded(value: Any) -> Any:
    """Returns `value` with all numbers in it, at any depth, rounded to three decimals."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(float(value), 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()

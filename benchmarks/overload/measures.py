"""What is done to a cluster, and what is measured meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.clusters.load import process_cpu_s
from benchmarks.overload.cluster import body_of
from benchmarks.overload.figures import first_tokens, percentile, phase_figures, recovery_s
from benchmarks.overload.load import Sent, Stream, play, share_of_same_answers
from infra.cluster import LocalCluster

CALM_SHARE = 0.7
AFTER_S = 8.0
"""How long the calm load behind an overload lasts."""
PATIENCE_S = 2.0
"""How much longer than the bound clients wait for a first token, before they leave."""
IDLE_TIMEOUT_S = 60.0
OTHERS = ("t0", "t1", "t2")
SHARE = 0.2
"""Of the capacity, what each modest tenant sends."""
GREEDY = 10
NUM_ASKED_AGAIN = 30

Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Options:
    """What is measured."""

    seconds: float
    """How long each load lasts."""
    bound_s: float
    """A good first token comes within it."""
    rounds: int
    """How often the tenants are measured."""
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    """Makes the prompts."""


async def overload(
    cluster: LocalCluster,
    factor: int,
    capacity: float,
    options: Options,
    right: Sequence[int] | None,
) -> Figures:
    """Sends so many times the capacity, then a calm load. Without `right` tokens, some requests are
    asked again to see whether their tokens were right."""
    ends, bound_s = options.seconds, options.bound_s
    streams = [
        Stream("", factor * capacity, 0.0, ends, factor),
        Stream("", CALM_SHARE * capacity, ends, ends + AFTER_S, factor + 100),
    ]
    pid = cluster.children["coordinator"].process.pid
    cpu_s = process_cpu_s(pid)
    sent = await play(cluster.url, streams, body_of, bound_s + PATIENCE_S, options.chance)
    cpu_s = process_cpu_s(pid) - cpu_s
    figures: Figures = dict(phase_figures(sent, 0.0, ends, bound_s, right))
    figures["recovery_s"] = recovery_s(sent, ends, bound_s, right)
    figures["requests"] = len(sent)
    figures["refused"] = sum(one.status == 429 for one in sent)
    figures["coordinator_cpu_s"] = round(cpu_s, 2)
    await until_idle(cluster.url)
    if right is None:
        good = [one for one in sent if one.is_good(bound_s, None)][-NUM_ASKED_AGAIN:]
        figures["same_tokens_asked_again"] = await share_of_same_answers(cluster.url, good)
    return figures


async def fairness(cluster: LocalCluster, capacity: float, options: Options) -> Figures:
    """Returns the others' 99th percentile while the greedy tenant sends its share and ten times as
    much, in turn. `ratio` is the median over the rounds."""
    seen: dict[int, list[Sent]] = {1: [], GREEDY: []}
    ratios: list[float] = []
    for number in range(options.rounds):
        p99: dict[int, float] = {}
        for factor in (1, GREEDY):
            rates = dict.fromkeys(OTHERS, SHARE) | {"greedy": factor * SHARE}
            streams = [
                Stream(tenant, share * capacity, 0.0, options.seconds, number)
                for tenant, share in rates.items()
            ]
            patience_s = options.bound_s + PATIENCE_S
            sent = await play(cluster.url, streams, body_of, patience_s, options.chance)
            seen[factor] += sent
            p99[factor] = percentile(first_tokens(_others(sent)), 0.99)
            await until_idle(cluster.url)
        ratios.append(p99[GREEDY] / p99[1])
    return {
        "others": len(_others(seen[1])),
        "others_ttft_p99_s": percentile(first_tokens(_others(seen[1])), 0.99),
        "others_ttft_p99_beside_greedy_s": percentile(first_tokens(_others(seen[GREEDY])), 0.99),
        "ratio": round(statistics.median(ratios), 3),
        "others_refused": sum(one.status == 429 for one in _others(seen[1])),
        "others_refused_beside_greedy": sum(one.status == 429 for one in _others(seen[GREEDY])),
        "greedy_sent": len(seen[GREEDY]) - len(_others(seen[GREEDY])),
        "greedy_refused": sum(one.status == 429 for one in seen[GREEDY] if one.tenant == "greedy"),
    }


async def until_idle(url: str) -> None:
    """Waits until no request is left. Raises TimeoutError."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while await asyncio.to_thread(_num_requests, url):
        if time.monotonic() > deadline:
            raise TimeoutError(f"requests are left after {IDLE_TIMEOUT_S:g} s")
        await asyncio.sleep(0.2)


def _num_requests(url: str) -> int:
    with urllib.request.urlopen(f"{url}/v1/loads", timeout=IDLE_TIMEOUT_S) as reply:
        return int(json.load(reply)["aggregate"]["total_reqs"])


def _others(sent: Sequence[Sent]) -> list[Sent]:
    return [one for one in sent if one.tenant != "greedy"]

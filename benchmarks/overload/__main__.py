"""Goodput under more load than a cluster can bear, and fairness between tenants (`make
bench-overload`).

A request is good if its first token comes within the bound and all its tokens are right. Load comes
in an open loop, at 1, 2, 3 and 10 times the capacity, which is what a closed loop of many clients
gets answered; behind each overload the load is four fifths of the capacity, and how long it takes
until all is good again is the recovery. With and without the admission in one run.

A cluster that serves everybody in order gets later with every request that is more than it can
serve, until all that it computes is too late: the goodput falls to nothing while the nodes are
busy. With prompts of 160 tokens on average, and two nodes that compute 2,000 tokens a second and
need 10 ms a prompt, the capacity is 22 requests a second.

Fairness: three tenants send a fifth of the capacity each, a fourth one as much, then ten times as
much; the figure is the 99th percentile of the others' time to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.clusters.load import process_cpu_s
from benchmarks.clusters.modelled_engine import ANSWER
from benchmarks.machine import machine
from benchmarks.overload.cluster import ANSWER_TOKENS, body_of, sleeping_cluster
from benchmarks.overload.figures import first_tokens, percentile, phase_figures, recovery_s
from benchmarks.overload.load import Sent, Stream, busiest, play

RIGHT = [ANSWER] * ANSWER_TOKENS
NUM_CLIENTS = 16
CALM_SHARE = 0.8
AFTER_S = 8.0
FACTORS = (1, 2, 3, 10)
OTHERS = ("t0", "t1", "t2")
SHARE = 0.2
GREEDY = 10

Figures = dict[str, float | None]


async def overloads(
    url: str, capacity: float, pid: int, given: argparse.Namespace
) -> dict[str, Figures]:
    """Returns the figures of each load, by its factor."""
    rows: dict[str, Figures] = {}
    for factor in given.factors:
        ends = given.seconds
        streams = [Stream("", factor * capacity, 0.0, ends, factor)]
        streams.append(Stream("", CALM_SHARE * capacity, ends, ends + AFTER_S, factor + 100))
        cpu_s = process_cpu_s(pid)
        sent = await play(url, streams, body_of, given.bound + 2.0, given.chance)
        cpu_s = process_cpu_s(pid) - cpu_s
        figures: Figures = dict(phase_figures(sent, 0.0, ends, given.bound, RIGHT))
        figures["recovery_s"] = recovery_s(sent, ends, given.bound, RIGHT)
        figures["coordinator_cpu_s"] = round(cpu_s, 2)
        figures["requests"] = len(sent)
        figures["refused"] = sum(one.status == 429 for one in sent)
        rows[str(factor)] = figures
        await asyncio.sleep(1.0)
    return rows


async def fairness(url: str, capacity: float, given: argparse.Namespace) -> Figures:
    """Returns the others' 99th percentile while the greedy tenant sends its share and ten times as
    much, in turn, over several rounds."""
    seen: dict[int, list[Sent]] = {1: [], GREEDY: []}
    for number in range(given.rounds):
        for factor in (1, GREEDY):
            streams = [Stream(one, SHARE * capacity, 0.0, given.seconds, number) for one in OTHERS]
            streams.append(Stream("greedy", factor * SHARE * capacity, 0.0, given.seconds, number))
            seen[factor] += await play(url, streams, body_of, given.bound + 2.0, given.chance)
            await asyncio.sleep(1.0)
    others = {f: [one for one in sent if one.tenant != "greedy"] for f, sent in seen.items()}
    p99 = {f: percentile(first_tokens(sent), 0.99) for f, sent in others.items()}
    return {
        "others": len(others[1]),
        "others_ttft_p99_s": p99[1],
        "others_ttft_p99_beside_greedy_s": p99[GREEDY],
        "ratio": round(p99[GREEDY] / p99[1], 3) if p99[1] else None,
        "others_refused": sum(one.status == 429 for one in others[1]),
        "others_refused_beside_greedy": sum(one.status == 429 for one in others[GREEDY]),
        "greedy_refused_share": _refused_share(
            [one for one in seen[GREEDY] if one.tenant == "greedy"]
        ),
    }


def _refused_share(sent: list[Sent]) -> float:
    return round(sum(one.status == 429 for one in sent) / len(sent), 3)


def measure(
    flags: dict[str, str], capacity: float | None, given: argparse.Namespace
) -> dict[str, object]:
    """Measures one setting of the coordinator. Without a `capacity` it is measured first."""
    with sleeping_cluster(flags) as cluster:
        if capacity is None:
            capacity = asyncio.run(
                busiest(cluster.url, NUM_CLIENTS, given.seconds, body_of, given.chance)
            )
        pid = cluster.children["coordinator"].process.pid
        rows = asyncio.run(overloads(cluster.url, capacity, pid, given))
        fair = asyncio.run(fairness(cluster.url, capacity, given)) if given.rounds else {}
    return {"capacity_per_s": round(capacity, 2), "loads": rows, "fairness": fair}


def main() -> None:
    parser = argparse.ArgumentParser(description="More load than a cluster can bear.")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--bound", type=float, default=2.0, help="seconds to a good first token")
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS)
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement of fairness")
    parser.add_argument("--out", type=Path, help="file for the figures")
    given = parser.parse_args()
    given.chance = random.Random(0)
    without = {"max_ttft": "0", "max_wait_s": "600"}
    report: dict[str, object] = {"bench": "overload", "bound_s": given.bound}
    off = measure(without, None, given)
    report["without"] = off
    report["with"] = measure({"max_ttft": str(given.bound)}, off["capacity_per_s"], given)  # type: ignore[arg-type]
    report["machine"] = machine("uvicorn", "uvloop", "pyzmq")
    _print_table(report)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def _print_table(report: dict[str, object]) -> None:
    table = Table(title="requests per second", box=box.SIMPLE)
    for heading in ("admission", "load", "sent", "good", "answered", "refused", "p99 s", "back in"):
        table.add_column(heading, justify="right")
    for name in ("without", "with"):
        part = report[name]
        assert isinstance(part, dict)
        for factor, row in part["loads"].items():
            keys = (
                "sent_per_s",
                "good_per_s",
                "answered_per_s",
                "refused_per_s",
                "ttft_p99_s",
                "recovery_s",
            )
            table.add_row(name, f"{factor} ×", *(str(row[key]) for key in keys))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

"""Tokens per second that coordinator processes stream from instant nodes to 256 clients.

With enough cores (two more than coordinators) every coordinator has one of its own, and so has
every process of clients, of which there are as many as coordinators if cores are left; the node and
Redis share another. With fewer, coordinators share one core and everything else another. The node
gives each running request a token per step and sends a step in one message, as a real one does.
Answers have 128 tokens. With steps that the coordinator keeps up with, every token is an event of
its own; where a client or its connection does not, tokens that have come together become one event.

`us/token` is the CPU time of the coordinator processes, kernel included, per token: it holds on a
machine that others use too, and 1e6 divided by it is the rate of a core of their own. `deltas` are
events with only what is new (`--stream-output`), `cumulative` SGLang's usual ones with all so far,
`chat` those of /v1/chat/completions.

What bounds it: an event is one write to a socket, which the kernel charges 5 to 10 us on loopback,
where it also runs what receives. All else is the price of our own code.

    .venv/bin/python -m benchmarks.streams [--seconds 5] [--steps-ms 20 5 2] [--workers 1 2]
        [--forms deltas cumulative chat] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.clusters.cores import Cores, cores_for, usable_cores
from benchmarks.http import HOST, PACKAGES, pin
from benchmarks.machine import machine
from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port
from infra.process import Child

RESULTS = Path(__file__).parent / "results" / "streams.json"
NUM_CLIENTS = 256
FORMS = ("deltas", "cumulative", "chat")
NOTE = (
    "A rate with several tokens per event is not that of one event per token. If others used the "
    "cores meanwhile, rates and events vary from run to run, and differences of a few us/token "
    "between rows mean nothing."
)
Row = dict[str, Any]
COLUMNS = {
    "workers": "workers",
    "form": "form",
    "step_ms": "step ms",
    "tokens_per_s": "tokens/s",
    "cpu_us_per_token": "us/token",
    "tokens_per_event": "tokens/event",
    "bytes_per_token": "bytes/token",
    "core_shares": "shares",
    "client_shares": "clients'",
}


@contextmanager
def cluster(
    directory: Path, form: str, workers: int, step_ms: float, cores: Cores
) -> Iterator[tuple[int, list[int]]]:
    """Runs a cluster of a coordinator and an instant node; yields the port and the ids of the
    coordinator processes."""
    flags = {"workers": str(workers), "log_level": "warning"}
    if form == "deltas":
        flags["stream_output"] = "true"
    plan = ClusterPlan(0, 0, HOST, free_port(), coordinator_flags=flags)
    with LocalCluster(plan, directory) as local:
        words = [sys.executable, "-m", "benchmarks.clusters.stub_nodes", "decode", "--name", "d0"]
        words += ["--redis-url", local.redis_url, "--step-s", str(step_ms / 1000)]
        local.children["d0"] = Child("d0", words, directory / "d0.log", lambda *_: None)
        local.wait_for_nodes()
        parent = local.children["coordinator"].process.pid
        pids = _children(parent) if workers > 1 else [parent]
        for i, pid in enumerate(pids):
            pin(pid, cores.coordinators[i % len(cores.coordinators)])
        pin(local.children["d0"].process.pid, cores.others)
        yield plan.port, pids


def _children(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in words]


def measure(form: str, workers: int, step_ms: float, seconds: float, cores: Cores) -> Row:
    """Prints and returns one row."""
    with (
        tempfile.TemporaryDirectory() as name,
        cluster(Path(name), form, workers, step_ms, cores) as (port, pids),
    ):
        command = [sys.executable, "-m", "benchmarks.clusters.stream_load", "--port", str(port)]
        command += ["--clients", str(NUM_CLIENTS // len(cores.clients))]
        command += ["--chat"] if form == "chat" else []
        command += ["--seconds", str(seconds), "--pids", *map(str, pids)]
        loads = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in cores.clients]
        for load, core in zip(loads, cores.clients, strict=True):
            pin(load.pid, core)
        outputs = [load.communicate()[0] for load in loads]
    if any(load.returncode for load in loads):
        raise SystemExit("a process of clients has failed")
    seen = [json.loads(output) for output in outputs]
    row = {"workers": workers, "form": form, "step_ms": step_ms} | together(seen)
    print_row(row)
    return row


def together(seen: Sequence[Row]) -> Row:
    """Returns the figures of a row, from what the processes of clients have seen in the same
    seconds."""
    tokens, events, num_bytes = (
        sum(one[key] for one in seen) for key in ("tokens_per_s", "events_per_s", "bytes_per_s")
    )
    of_each = zip(*(one["core_shares"] for one in seen), strict=True)
    shares = [sum(of_one) / len(seen) for of_one in of_each]
    return {
        "tokens_per_s": round(tokens),
        "cpu_us_per_token": round(sum(shares) / tokens * 1e6, 2),
        "tokens_per_event": round(tokens / events, 2),
        "bytes_per_token": round(num_bytes / tokens),
        "core_shares": [round(share, 2) for share in shares],
        "client_shares": [round(one["client_share"], 2) for one in seen],
        "refused": sum(one["refused"] for one in seen),
    }


def print_row(row: Row) -> None:
    """Prints one line of the table at once, since a row takes seconds to measure."""
    print("".join(f"{row[key]!s:>13}" for key in COLUMNS), flush=True)


def summary(rows: list[Row]) -> Row:
    """Returns, for each form and number of workers, the row with the largest rate, and the CPU time
    per token where nearly each token was an event of its own."""
    result: Row = {}
    for row in rows:
        found = result.setdefault(f"{row['form']}, workers: {row['workers']}", {})
        if row["tokens_per_s"] > found.get("tokens_per_s", 0):
            for key in ("tokens_per_s", "tokens_per_event", "cpu_us_per_token"):
                found[key] = row[key]
        if row["tokens_per_event"] < 1.2:
            found["cpu_us_per_token_one_by_one"] = row["cpu_us_per_token"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Streams of coordinator processes.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--steps-ms", type=float, nargs="+", default=[20.0, 5.0, 2.0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    described = machine(*PACKAGES)  # before this process is bound to one core
    usable = usable_cores()
    if len(usable) < 2:
        raise SystemExit("two cores are needed: one for coordinators, one for everything else")
    print_row(COLUMNS)
    rows = []
    for form in given.forms:
        for workers in given.workers:
            cores = cores_for(workers, usable)
            os.sched_setaffinity(0, {cores.others})  # what this process starts begins there
            for step_ms in given.steps_ms:
                rows.append(measure(form, workers, step_ms, given.seconds, cores))
    result = {"machine": described | {"note": NOTE}, "summary": summary(rows), "rows": rows}
    if given.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

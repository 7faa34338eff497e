"""The coordinator alone over HTTP: /generate in front of nodes that answer at once.

Core 0 has the process under test (all its threads), core 1 the load generator, the stub nodes and
Redis. The load is closed: each client sends its next request when it has the answer, so at 32
clients p50 is 32 / rate (Little's law) and the rate is what counts. The time that a coordinator
adds is seen at one client, less the p50 of the same client talking to a stub worker directly.

`CPU us` is what a request costs the process under test, kernel included, and holds on a machine
that others use too; 1e6 / CPU us is the rate of a core of its own. `others'` is the share of core 0
that somebody else took while it was measured: a rate is only the coordinator's where it is near
0. `client's` is the load generator's share of core 1: at 0.06 for our rates it measures us and
not itself (of an instant worker it gets 60,000 to 100,000 answers a second).

A request crosses: client → HTTP parse → JSON and checks → tokenizer → route → ZMQ → stub node →
ZMQ → detokenizer → JSON → client. Where a request's time goes (py-spy, 32 clients, text; shares
of the main thread, whose 0.33 ms are joined by 0.04 ms of ZMQ's I/O thread):

    16 %  the tokenizer (50 us for 32 tokens)
    31 %  Service.submit: 17 the tracker (7 of them adding up the work assigned to each node,
          5 the router), 6 the send, the rest ids, limits and the Answer
    18 %  messages from nodes: 8 a log line per answer, 5 the tracker, 3 text of the tokens
     9 %  the reply: socket writes nearly all
     7 %  body and checks
     5 %  FastAPI's and Starlette's outer layers
    14 %  uvicorn and the event loop: parsing, tasks, timers

sglang-router (Rust) is measured in the same run, before two instant HTTP workers, if it is
there: `pip install sglang-router` into an environment of its own, and name its Python in
--router-python. It proxies bytes and keeps a radix tree of texts: it neither tokenizes nor
detokenizes nor checks what it passes on.

    .venv/bin/python -m benchmarks.http [--clients 32] [--seconds 8] [--router none|sglang]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import machine
from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port
from infra.process import Child

HOST = "127.0.0.1"
UNDER_TEST, OTHERS = 0, 1
"""The numbers of the two cores: that of the process under test, and that of all other processes."""
START_TIMEOUT_S = 30.0
PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "msgspec", "pyzmq", "tokenizers")
RESULTS = Path(__file__).parent / "results" / "http.json"

Row = dict[str, Any]


def pin(pid: int, core: int) -> None:
    """Binds a process to one core: its threads and those that it starts from now on."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def load(under_test: int, port: int, clients: int, seconds: float, case: str) -> Row:
    """Runs the load generator in a process of its own, so that it takes no time of the process
    `under_test` (an id) nor its lock, and returns a row of figures."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.clusters.load",
        "--port",
        str(port),
        "--case",
        case,
    ]
    command += ["--clients", str(clients), "--seconds", str(seconds)]
    command += ["--pid", str(under_test), "--core", str(UNDER_TEST)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"clients": clients, "case": case} | json.loads(output)


@contextmanager
def coordinator(directory: Path) -> Iterator[tuple[int, int]]:
    """Runs a cluster of stub nodes; yields the coordinator's process id and port."""
    plan = ClusterPlan(num_prefill=0, num_decode=0, host=HOST, port=free_port())
    with LocalCluster(plan, directory) as cluster:
        for role, name in (("prefill", "p0"), ("decode", "d0")):
            words = [sys.executable, "-m", "benchmarks.clusters.stub_nodes", role, "--name", name]
            words += ["--redis-url", cluster.redis_url]
            cluster.children[name] = Child(name, words, directory / f"{name}.log", _ignore)
        cluster.wait_for_nodes()
        for name, child in cluster.children.items():
            pin(child.process.pid, UNDER_TEST if name == "coordinator" else OTHERS)
        yield cluster.children["coordinator"].process.pid, plan.port


@contextmanager
def started(name: str, command: list[str], directory: Path, url: str) -> Iterator[Child]:
    """Runs a process; yields it when `url` answers 200, and stops it in the end."""
    child = Child(name, command, directory / f"{name}.log", _ignore)
    try:
        _wait_for(url, child)
        yield child
    finally:
        child.terminate()
        child.wait()


def worker(name: str, port: int, directory: Path) -> Any:
    """Runs a stub of an SGLang server, as a context that yields its process."""
    command = [sys.executable, "-m", "benchmarks.clusters.sglang_worker", "--port", str(port)]
    return started(name, command, directory, f"http://{HOST}:{port}/health")


@contextmanager
def router(python: str, directory: Path) -> Iterator[tuple[int, int]]:
    """Runs sglang-router of the environment of `python` before two stub workers; yields its
    process id and port."""
    port, prometheus, *workers = (free_port() for _ in range(4))
    with ExitStack() as stack:
        for i, at in enumerate(workers):
            child = stack.enter_context(worker(f"w{i}", at, directory))
            pin(child.process.pid, OTHERS)
        command = [python, "-m", "sglang_router.launch_router", "--policy", "cache_aware"]
        command += ["--host", HOST, "--port", str(port), "--prometheus-port", str(prometheus)]
        command += ["--log-level", "error"]
        command += ["--worker-urls", *(f"http://{HOST}:{at}" for at in workers)]
        # The router makes as many threads as it has cores when it starts, so it must inherit its
        # one core and not be bound to it later.
        os.sched_setaffinity(0, {UNDER_TEST})
        process = stack.enter_context(
            started("router", command, directory, f"http://{HOST}:{port}/health")
        )
        os.sched_setaffinity(0, {OTHERS})
        _wait_for_answer(f"http://{HOST}:{port}/generate", process)
        yield process.process.pid, port


def _wait_for(url: str, child: Child) -> None:
    """Waits until `url` answers 200. Ends the benchmark if the process does not get that far."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while child.alive and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=2.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # not listening yet
        time.sleep(0.05)
    raise SystemExit(f"{child.name} did not start: " + " | ".join(child.last_lines))


def _wait_for_answer(url: str, child: Child) -> None:
    """Waits until the router has found that its workers are well, and passes requests on."""
    deadline = time.monotonic() + START_TIMEOUT_S
    body = {"text": "ready?", "sampling_params": {"max_new_tokens": 1}}
    while httpx.post(url, json=body, timeout=5.0).status_code != 200:
        if time.monotonic() > deadline:
            raise SystemExit(f"{child.name} has no workers: " + " | ".join(child.last_lines))
        time.sleep(0.05)


def _ignore(name: str, line: str) -> None:
    pass


def measure(
    name: str, pid: int, port: int, clients: int, seconds: float, cases: tuple[str, ...]
) -> list[Row]:
    """Prints and returns the rows of one process under test: every case, with `clients` clients
    and with one."""
    rows = []
    for case in cases:
        for count in (clients, 1):
            row = load(pid, port, count, seconds, case)
            row.pop("answer")
            rows.append({"server": name} | row)
            print_row(rows[-1])
    return rows


COLUMNS = {
    "server": "server",
    "case": "case",
    "clients": "clients",
    "requests_per_s": "requests/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_us_per_request": "CPU us",
    "core_share": "its share",
    "core_share_of_others": "others'",
    "client_share": "client's",
    "refused": "refused",
}


def print_row(row: Row) -> None:
    """Prints one line of the table at once, since a row takes many seconds to measure."""
    print("".join(f"{row[key]:>{14 if key == 'server' else 11}}" for key in COLUMNS), flush=True)


def summary(rows: list[Row], clients: int) -> Row:
    """Returns, for each case, our rate and the time that we add to a request, and the same for
    sglang-router if it was measured."""

    def of(server: str, case: str, count: int) -> Row | None:
        found = [r for r in rows if (r["server"], r["case"], r["clients"]) == (server, case, count)]
        return found[0] if found else None

    result: Row = {}
    for case in ("text", "ids"):
        ours, alone, direct = (
            of("kvrelay", case, clients),
            of("kvrelay", case, 1),
            of("worker alone", case, 1),
        )
        assert ours and alone and direct
        result[case] = {
            "requests_per_s": ours["requests_per_s"],
            "p50_ms_one_client": alone["p50_ms"],
            "added_p50_ms": round(alone["p50_ms"] - direct["p50_ms"], 3),
        }
        theirs, theirs_alone = of("sglang-router", case, clients), of("sglang-router", case, 1)
        if theirs and theirs_alone:
            result[case] |= {
                "rate_over_sglang_router": round(
                    ours["requests_per_s"] / theirs["requests_per_s"], 3
                ),
                "sglang_router_added_p50_ms": round(theirs_alone["p50_ms"] - direct["p50_ms"], 3),
            }
    return result


def version_in(python: str, package: str) -> str:
    """Returns the version of a package in the environment of another `python`."""
    program = f"from importlib.metadata import version; print(version('{package}'))"
    return subprocess.run(
        [python, "-c", program], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="The coordinator alone over HTTP.")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--router", choices=("none", "sglang"), default="none")
    parser.add_argument("--router-python", default=sys.executable)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    given = parser.parse_args()
    versions = machine(*PACKAGES)  # before this process is bound to one core
    os.sched_setaffinity(0, {OTHERS})
    cases = ("text", "ids")
    print_row(COLUMNS)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rows: list[Row] = []

        def add(server: str, pid: int, port: int) -> None:
            rows.extend(measure(server, pid, port, given.clients, given.seconds, cases))

        with coordinator(directory) as (pid, port):
            add("kvrelay", pid, port)
        with worker("worker", at := free_port(), directory) as child:
            pin(child.process.pid, UNDER_TEST)
            add("worker alone", child.process.pid, at)
        if given.router == "sglang":
            with router(given.router_python, directory) as (pid, port):
                add("sglang-router", pid, port)
    if given.router == "sglang":
        versions["sglang-router"] = version_in(given.router_python, "sglang-router")
    result = {"machine": versions, "summary": summary(rows, given.clients), "rows": rows}
    if given.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

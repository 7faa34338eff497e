"""Runs the servers of a peer: starts them, waits until they answer, and stops them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serving.systems.peer_commands import PeerServer
from benchmarks.serving.systems.peer_names import Peer
from benchmarks.serving.systems.peers import PeerPlan
from protocol.errors import UserError

INSTALL = {
    "sglang": "pip install sglang==0.5.17 nixl==1.5.1",
    "sglang-router": "pip install sglang-router==0.3.2",
    "vllm": "pip install vllm==0.23.0 nixl==1.5.1",
    "vllm-router": "pip install vllm-router==0.1.17",
}
"""How the versions are installed for which the commands were written, each peer in an environment
of its own."""
START_S = 420.0
"""How long the servers may take: they compile kernels and capture graphs."""
STOP_S, POLL_S, ASK_S = 15.0, 0.5, 5.0
SHOWN_LINES = 15


class PeerFailed(UserError):
    """A peer cannot be measured; the message says why, and what helps."""


def versions_for(peer: Peer, python: str) -> dict[str, str]:
    """Returns the versions of the packages that a peer needs, as the interpreter `python` has them.
    Raises PeerFailed if one is not installed there."""
    packages = [peer.package, *([f"{peer.package}-router"] if peer.has_router else [])]
    return {package: _version_of(package, peer, python) for package in packages}


def _version_of(package: str, peer: Peer, python: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise PeerFailed(
            f"--peer {peer.name}: {package} is not installed for {python}; install it with "
            f"`{INSTALL[package]}`, best in an environment of its own, and name the interpreter of "
            "that with --peer-python"
        )
    return asked.stdout.strip()


@contextmanager
def peer_servers(plan: PeerPlan, python: str, log_dir: Path) -> Iterator[float]:
    """Runs the servers until the context ends; yields how many seconds they took to answer. Raises
    PeerFailed, with the last lines of a log, if one does not."""
    log_dir.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    running: list[subprocess.Popen[bytes]] = []
    try:
        for server in plan.servers:
            running.append(_start(server, python, log_dir))
        _wait_until_ready(plan.servers, running, log_dir, began_s + START_S)
        if plan.router:
            running.append(_start(plan.router, python, log_dir))
            _wait_until_ready([plan.router], running[-1:], log_dir, began_s + START_S)
        yield time.monotonic() - began_s
    finally:
        _stop(running)


def _start(server: PeerServer, python: str, log_dir: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **server.environment}
    # Compilers that a peer calls for its kernels (ninja) lie beside its interpreter.
    environment["PATH"] = f"{Path(python).parent}:{environment.get('PATH', '')}"
    with (log_dir / f"{server.name}.log").open("wb") as log:
        return subprocess.Popen(
            [python, *server.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _wait_until_ready(
    servers: Sequence[PeerServer],
    running: Sequence[subprocess.Popen[bytes]],
    log_dir: Path,
    deadline_s: float,
) -> None:
    waiting = list(zip(servers, running, strict=True))
    while waiting:
        for server, process in waiting:
            if process.poll() is not None:
                raise PeerFailed(
                    f"{server.name} ended with exit code {process.returncode}; its last lines:\n"
                    f"{_last_lines(log_dir / f'{server.name}.log')}"
                )
            if time.monotonic() > deadline_s:
                raise PeerFailed(
                    f"{server.name} did not answer within {START_S:.0f} s; its last lines:\n"
                    f"{_last_lines(log_dir / f'{server.name}.log')}"
                )
        waiting = [(server, process) for server, process in waiting if not is_ready(server)]
        time.sleep(POLL_S)


def is_ready(server: PeerServer) -> bool:
    """Returns whether a server says that it can be asked; a router, that it has all its servers."""
    path = "readiness" if server.num_workers else "health"
    try:
        with urllib.request.urlopen(f"{server.url}/{path}", timeout=ASK_S) as answer:
            told = answer.read()
    except OSError:
        return False
    return not server.num_workers or _workers_of(json.loads(told)) == server.num_workers


def _workers_of(readiness: Mapping[str, Any]) -> int:
    """Returns how many servers a router has found, as it tells: all in one number, or by role."""
    by_role = (readiness.get(role, {}).get("healthy", 0) for role in ("prefill", "decode"))
    return int(readiness.get("healthy_workers") or sum(by_role))


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line[:300]}" for line in lines[-SHOWN_LINES:])


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stops the servers and whatever they have started; their sessions are their own."""
    for process in running:
        _signal(process, signal.SIGTERM)
    deadline_s = time.monotonic() + STOP_S
    for process in running:
        try:
            process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"process {process.pid} does not stop; it is killed", file=sys.stderr)
        _signal(process, signal.SIGKILL)  # workers may outlive their server
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass

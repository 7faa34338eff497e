"""Runs the servers of a peer: starts them, waits until they answer, and stops them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.serving.systems.peers import INSTALL, PeerPlan, PeerServer, package_of
from protocol.errors import UserError

START_S = 420.0
"""How long the servers may take: they compile kernels and capture graphs."""
STOP_S, POLL_S, ASK_S = 15.0, 0.5, 5.0
SHOWN_LINES = 15


class PeerFailed(UserError):
    """A peer cannot be measured; the message says why, and what helps."""


def version_of(peer: str, python: str) -> str:
    """Returns the version of a peer's package for the interpreter `python`. Raises PeerFailed if it
    is not installed there."""
    package = package_of(peer)
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise PeerFailed(
            f"--peer {peer}: {package} is not installed for {python}; install it with "
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
        waiting = [(server, process) for server, process in waiting if not answers(server.url)]
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    """Returns whether a server says that it can be asked."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ASK_S) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


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

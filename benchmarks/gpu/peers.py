"""Runs peer engines on the GPU of this run, one after another, each in a process of its own.

A peer's packages rarely fit beside ours, so it can have a search path of its own. A peer that is
not installed, or that fails, is missing from the comparison and says why: figures of another run
never stand in for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.gpu.peer_process import PEERS, MissingPeer, PeerTask, PeerTimes

DEADLINE_S = 600.0
GRACE_S = 10.0
ROOT = Path(__file__).resolve().parent.parent.parent


def run_peers(
    names: Sequence[str], paths: Mapping[str, str], task: PeerTask, console: Console
) -> dict[str, PeerTimes | MissingPeer]:
    """Measures each of the peers. `paths` are the search paths (PYTHONPATH) of those that have one
    of their own."""
    told: dict[str, PeerTimes | MissingPeer] = {}
    for name in names:
        assert name in PEERS, "the command line has checked it"
        command = [sys.executable, "-m", "benchmarks.gpu.peer_process", name]
        peer = run_peer(command, paths.get(name, ""), task, DEADLINE_S)
        told[name] = peer
        console.print(f"{name}: {peer.reason if isinstance(peer, MissingPeer) else peer.version}")
    return told


def run_peer(
    command: Sequence[str], path: str, task: PeerTask, deadline_s: float
) -> PeerTimes | MissingPeer:
    """Runs one peer's process, and ends it with all that it has started."""
    search = [str(ROOT), path or os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(msgspec.json.encode(task), timeout=deadline_s)
    except subprocess.TimeoutExpired:
        return MissingPeer(f"it took more than {deadline_s:.0f} s")
    finally:
        _end(process)
    return _told(output, process.returncode)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process group: engines leave workers behind when they fail."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _told(output: bytes, code: int) -> PeerTimes | MissingPeer:
    """Reads the last line of a peer's output that is a message; engines may print behind it."""
    lines = [line for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        try:
            return msgspec.json.decode(line, type=PeerTimes | MissingPeer)
        except msgspec.DecodeError:
            continue
    last = lines[-1].decode(errors="replace")[-300:] if lines else "it said nothing"
    return MissingPeer(f"it ended with code {code}: {last}")

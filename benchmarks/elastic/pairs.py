"""What pairs of nodes cost: memory and seconds of each, and what comes back when they end.

One process, the hub, makes pairs with up to eight others through kvtransfer, as a node does with
its peers: first to send to each, then to receive from each, with a transfer over every pair. One
peer is killed in the middle of transfers; the other pairs are left idle until both ends close them,
made once more, and left idle again, which shows whether memory grows with every pair that was made.
Over nccl the hub is alone on the first GPU and its peers share the others, so that all memory that
is used there beyond the start is the hub's: communicators of NCCL, and staging buffers, which torch
keeps for the next pair when one ends. Pairs to send are measured again with each setting of NCCL's
channels, in new processes, since NCCL reads it once.

    python -m benchmarks.elastic.pairs [--backend nccl] [--peers 8] [--within 60] [--out FILE]

On a CPU the backends are shm and tcp, and the memory is the hub's resident memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.clusters.page_stream import SHAPES
from benchmarks.elastic.pair_processes import Member, MemberPlan
from benchmarks.machine import cards, machine

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "16 channels": {"NCCL_MAX_P2P_NCHANNELS": "16"},
    "8 channels": {"NCCL_MAX_P2P_NCHANNELS": "8"},
}
"""Of NCCL, by name; the first one is what a node has unless its environment says otherwise."""
NUM_PAGES = 64
"""Of a transfer: 128 MiB of Llama-3-8B's pages, so that staging buffers grow to their full size."""
NUM_UNDER_WAY = 20
"""Transfers that are under way when a peer is killed."""
SENDING_S = 12.0
"""How long the pairs to send of one setting may take, with the start of all processes."""
SETTLES_WITHIN_S = 10.0
"""How long memory may take to come back; also until a dead peer is missed."""
POLL_S = 0.05


@dataclass(frozen=True)
class Step:
    """What the hub holds after a step, beyond what it held before the first pair."""

    setting: str
    what: str
    peer: str
    seconds: float
    memory_mib: float
    buffers_mib: float
    """Of these, what torch has."""
    num_files: int
    num_open: int
    """Open links, of both directions."""


NOTHING = Step("", "", "", 0.0, 0.0, 0.0, 0, 0)


class Hub:
    """The process whose memory is looked at, and its peers."""

    def __init__(self, setting: str, backend: str, num_peers: int, idle_close_s: float) -> None:
        self.setting = setting
        self._idle_close_s = idle_close_s
        self.steps: list[Step] = []
        num_gpus = torch.cuda.device_count() if backend == "nccl" else 0
        devices = ["cpu"] * (num_peers + 1)
        if num_gpus:
            devices = ["cuda:0"] + [f"cuda:{1 + i % (num_gpus - 1)}" for i in range(num_peers)]
        plans = [
            MemberPlan(
                "hub" if i == 0 else f"peer{i}",
                backend,
                device,
                SHAPES["llama-3-8b" if num_gpus else "embedded model"],
                NUM_PAGES,
                idle_close_s,
                SETTINGS[setting],
            )
            for i, device in enumerate(devices)
        ]
        self._hub, *self._peers = [Member(plan) for plan in plans]

    def measure(self) -> None:
        """Does all steps. Raises AssertionError if a pair cannot be made."""
        self.measure_sending()
        for peer in self._peers:
            self._note("open to receive", peer, peer.open(self._hub))
            self._note("first transfer in", peer, peer.send(self._hub))
        self._kill(self._peers[-1])
        self._await_idle_closes("idle and closed")
        for peer in self._peers[:-1]:
            self._note("open again", peer, self._hub.open(peer))
            self._note("transfer again", peer, self._hub.send(peer))
        self._await_idle_closes("closed again")

    def measure_sending(self) -> None:
        """Does the first steps only: pairs to send, with a transfer over each."""
        for member in (self._hub, *self._peers):
            member.await_ready()
        self._before = self._hub.holding()
        for peer in self._peers:
            self._note("open to send", peer, self._hub.open(peer))
            self._note("first transfer out", peer, self._hub.send(peer))

    def kill(self) -> None:
        """Ends all processes."""
        for member in (self._hub, *self._peers):
            member.kill()

    def _kill(self, victim: Member) -> None:
        self._hub.send_on(victim, NUM_UNDER_WAY)
        started = time.perf_counter()
        victim.kill()
        while any(peer == victim.name for peer, _ in self._hub.holding().open_links):
            assert time.perf_counter() < started + SETTLES_WITHIN_S, "a dead peer is not missed"
            time.sleep(POLL_S)
        self._settle()
        self._note("killed while it received", victim, time.perf_counter() - started)

    def _await_idle_closes(self, what: str) -> None:
        """Notes what is held whenever one more peer has no open link."""
        started = time.perf_counter()
        left = {peer.name for peer in self._peers[:-1]}
        while left:
            late = time.perf_counter() > started + self._idle_close_s + SETTLES_WITHIN_S
            assert not late, f"idle links are not closed: {left}"
            time.sleep(POLL_S)
            still_open = {peer for peer, _ in self._hub.holding().open_links}
            for peer in [one for one in self._peers if one.name in left - still_open]:
                self._note(what, peer, time.perf_counter() - started)
                left.discard(peer.name)
        self._settle()
        self._note(f"all {what}", self._hub, time.perf_counter() - started)

    def _settle(self) -> None:
        """Waits until memory stays as it is: NCCL gives it back on a thread."""
        readings, deadline = (
            [self._hub.holding().memory_mib],
            time.perf_counter() + SETTLES_WITHIN_S,
        )
        while time.perf_counter() < deadline and readings[-1:] * 3 != readings[-3:]:
            time.sleep(10 * POLL_S)
            readings.append(self._hub.holding().memory_mib)

    def _note(self, what: str, peer: Member, seconds: float) -> None:
        now, before = self._hub.holding(), self._before
        self.steps.append(
            Step(
                self.setting,
                what,
                peer.name,
                round(seconds, 4),
                round(now.memory_mib - before.memory_mib, 1),
                round(now.buffers_mib - before.buffers_mib, 1),
                now.num_files - before.num_files,
                len(now.open_links),
            )
        )


@contextmanager
def running(setting: str, backend: str, num_peers: int, idle_close_s: float) -> Iterator[Hub]:
    """Runs the processes of one setting until the context ends."""
    hub = Hub(setting, backend, num_peers, idle_close_s)
    try:
        yield hub
    finally:
        hub.kill()


def measure(backend: str, num_peers: int, idle_close_s: float, within_s: float) -> list[Step]:
    """Measures one setting after the other; over other backends than nccl there is only one. After
    the first, those are left out, with a sentence, for which the time would not do."""
    began, steps = time.perf_counter(), list[Step]()
    for setting in SETTINGS if backend == "nccl" else ("default",):
        if steps and time.perf_counter() - began + SENDING_S > within_s:
            print(f"{setting}: left out, as --within {within_s:g} leaves too little time")
            continue
        with running(setting, backend, num_peers, idle_close_s) as hub:
            try:
                hub.measure() if setting == "default" else hub.measure_sending()
            except (AssertionError, EOFError, OSError) as error:
                print(f"{setting}: given up: {error}")
        steps += hub.steps
    return steps


def summary(steps: list[Step]) -> dict[str, Any]:
    """Returns for each setting the mean growth of a pair, and what was left in the end."""
    return {
        setting: _summary_of([step for step in steps if step.setting == setting])
        for setting in dict.fromkeys(step.setting for step in steps)
    }


def _summary_of(steps: list[Step]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    grown = [
        (now, now.memory_mib - before.memory_mib, now.buffers_mib - before.buffers_mib)
        for before, now in itertools.pairwise([NOTHING, *steps])
    ]
    for what in dict.fromkeys(step.what for step in steps):
        rows = [row for row in grown if row[0].what == what]
        found[what.replace(" ", "_")] = {
            "times": len(rows),
            "median_s": round(statistics.median(step.seconds for step, _, _ in rows), 4),
            "max_s": max(step.seconds for step, _, _ in rows),
            "first_mib": round(rows[0][1], 1),
            "mean_mib": round(statistics.fmean(mib for _, mib, _ in rows), 1),
            "mean_buffers_mib": round(statistics.fmean(mib for _, _, mib in rows), 1),
        }
    last = steps[-1]
    return found | {
        "peak_mib": max(step.memory_mib for step in steps),
        "left_mib": last.memory_mib,
        "left_buffers_mib": last.buffers_mib,
        "left_files": last.num_files,
        "left_open": last.num_open,
    }


def table(steps: list[Step]) -> Table:
    """Returns the steps for people."""
    table = Table(title="what the hub holds, beyond its start", box=box.SIMPLE)
    for heading in ("setting", "step", "peer", "s", "MiB", "of them torch's", "files", "open"):
        table.add_column(heading, justify="right")
    for step in steps:
        table.add_row(*map(str, asdict(step).values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.elastic.pairs", description="What pairs of nodes cost."
    )
    parser.add_argument("--backend", choices=("nccl", "shm", "tcp"), default="shm")
    parser.add_argument("--peers", type=int, default=8, help="2 or more; one of them is killed")
    parser.add_argument("--idle-close", type=float, default=9.0, help="seconds; of unused pairs")
    parser.add_argument("--within", type=float, default=60.0, help="seconds for all settings")
    parser.add_argument("--out", type=Path, help="write the JSON line here, too")
    given = parser.parse_args()
    if given.peers < 2:
        parser.error(f"--peers is {given.peers}; one is killed, so give 2 or more")
    if given.backend == "nccl" and torch.cuda.device_count() < 2:
        sys.exit("bench-elastic: nccl needs two GPUs; --backend shm runs the same on a CPU")
    steps = measure(given.backend, given.peers, given.idle_close, given.within)
    Console(width=120).print(table(steps))
    result = {
        "bench": "elastic-pairs",
        "machine": machine("torch") | {"gpus": cards()},
        "backend": given.backend,
        "peers": given.peers,
        "settings": summary(steps),
        "steps": [asdict(step) for step in steps],
    }
    line = json.dumps(result)
    if given.out is not None:
        given.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()

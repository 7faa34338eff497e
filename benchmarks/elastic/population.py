"""`Population`: a running cluster whose nodes are started, killed and stopped one by one."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.elastic.changes import Change
from benchmarks.elastic.watching import StartedNode
from infra.cluster import ClusterPlan, LocalCluster
from infra.process import Child, Start, start_program
from protocol.ids import Role

LOST = re.compile(r"node (\S+)@\d+ is lost: no heartbeat|Redis lost the record of (\S+)@\d+")
"""What a coordinator logs when a lease has ended, and a node that finds its own one gone."""

DRAINS_WITHIN_S = 10.0
"""--drain-timeout-s of the nodes: how long one that was asked to stop may finish what it has."""
STOPS_WITHIN_S = DRAINS_WITHIN_S + 5.0
"""How long it may take until it has ended."""


@dataclass(frozen=True)
class Happened:
    """A change that was made, `at` a time of `time.monotonic`."""

    change: Change
    at: float


class Population:
    """The processes of a cluster. One thread uses it, as processes end with the thread that has
    started them; `started` may be called by any."""

    def __init__(
        self, plan: ClusterPlan, log_dir: Path, num_gpus: int, start: Start = start_program
    ) -> None:
        """Starts nothing yet. Nodes go round `num_gpus` GPUs; 0: they compute on the CPU."""
        self.local = LocalCluster(plan, log_dir, self._on_line, start)
        self.happened: list[Happened] = []
        self.starts: list[StartedNode] = []
        """All processes of nodes that were started."""
        self.lost: list[tuple[str, float]] = []
        """Names of nodes whose lease was lost, and when."""
        self._num_gpus = num_gpus
        self._newest: dict[str, StartedNode] = {}
        self._stopping: dict[str, tuple[Happened, Child]] = {}
        """Nodes that were asked to stop, and are to be started again."""

    def __enter__(self) -> Population:
        at = time.monotonic()
        self.local.start()
        for name in self.local.plan.node_names:
            role: Role = "prefill" if name.startswith("p") else "decode"
            self._note(name, role, self.local.children[name], at)
        return self

    def __exit__(self, *_: object) -> None:
        self.local.stop()
        for _stop, child in self._stopping.values():
            child.wait()

    def started(self) -> Mapping[str, StartedNode]:
        """Returns the newest process of each node that was not killed or stopped."""
        return dict(self._newest)

    def make(self, change: Change) -> None:
        """Makes a change. Returns at once: a node takes its time to come and to go."""
        print(f"{change.kind}: {change.role} node {change.node}", flush=True)
        self.happened.append(Happened(change, time.monotonic()))
        if change.kind == "join":
            self._start(change)
            return
        child = self.local.children.pop(change.node)
        del self._newest[change.node]
        if change.kind == "kill":
            child.process.send_signal(signal.SIGKILL)
            child.wait()
        else:
            child.terminate()
            self._stopping[change.node] = self.happened[-1], child

    def go_on(self) -> None:
        """Starts nodes again that were asked to stop and have ended. One that takes too long is
        killed first."""
        for name, (stop, child) in list(self._stopping.items()):
            if not child.alive or time.monotonic() > stop.at + STOPS_WITHIN_S:
                child.wait(0.0)
                del self._stopping[name]
                self._start(stop.change)

    def _start(self, change: Change) -> None:
        log_file = self.local.log_dir / f"{change.node}.log"
        if log_file.exists():  # the next life of this name would overwrite it
            log_file.rename(log_file.with_suffix(f".{len(self.starts)}.log"))
        at = time.monotonic()
        child = self.local.start_node(change.role, change.node, self._place())
        self._note(change.node, change.role, child, at)

    def _note(self, name: str, role: Role, child: Child, at: float) -> None:
        one = StartedNode(name, role, child.process.pid, at)
        self.starts.append(one)
        self._newest[name] = one

    def _place(self) -> dict[str, str]:
        """Returns the flag that puts a new node on the GPU with the fewest nodes."""
        if not self._num_gpus:
            return {}
        devices = [_device_of(child) for child in self.local.children.values()]
        gpus = [f"cuda:{number}" for number in range(self._num_gpus)]
        return {"device": min(gpus, key=devices.count)}

    def _on_line(self, name: str, line: str) -> None:
        if found := LOST.search(line):
            self.lost.append((found[1] or found[2], time.monotonic()))


def _device_of(child: Child) -> str:
    """Returns what follows --device in the command of a process; "" without it."""
    words = list(child.command)
    return words[words.index("--device") + 1] if "--device" in words else ""

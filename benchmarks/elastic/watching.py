"""`NodeWatch`: a thread that looks at the nodes of a cluster, and remembers each of their lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.elastic.memory import ReadMemory
from kvrelay.client import Client
from kvrelay.errors import ClientError
from protocol.ids import Role

LOOK_S = 0.25
MEMORY_S = 2.0
"""Seconds from one reading of all memory to the next."""
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class StartedNode:
    """A process of a node, and when it was started, by `time.monotonic`."""

    name: str
    role: Role
    pid: int
    at: float


@dataclass
class NodeLife:
    """One incarnation of a node, as its heartbeats told of it. Times are of `time.monotonic`."""

    name: str
    role: Role
    incarnation: int
    seen_at: float
    """When the coordinator listed it first."""
    request_at: float | None = None
    """When it had been given its first request."""
    last_at: float = 0.0
    links: list[dict[str, Any]] = field(default_factory=list)
    """Its links as the last heartbeat told of them."""
    readings: list[tuple[float, float]] = field(default_factory=list)
    """When its memory was read, and the mebibytes."""

    def heard(self, node: Mapping[str, Any], now: float) -> None:
        """Takes in what the coordinator lists of it."""
        self.last_at, self.links = now, node["links"]
        if self.request_at is None and node["load"]["counters"]["requests"]:
            self.request_at = now


class NodeWatch:
    """Looks every LOOK_S. `lives` may be read at any time; only the watch's threads change it."""

    def __init__(
        self,
        url: str,
        started: Callable[[], Mapping[str, StartedNode]],
        read_memory: ReadMemory,
    ) -> None:
        """`started` returns the newest process of each node."""
        self.lives: dict[tuple[str, int], NodeLife] = {}
        """By name and incarnation, in the order of their joining."""
        self.gpus: list[tuple[float, Mapping[str, float]]] = []
        """When the memory of the GPUs was read, and the mebibytes by name."""
        self._url = url
        self._started = started
        self._read_memory = read_memory
        self._newest: dict[str, NodeLife] = {}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("node-watch", self._look_on), ("memory-watch", self._read_on))
        ]

    def __enter__(self) -> NodeWatch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def serving(self) -> dict[str, NodeLife]:
        """Returns the newest life of each node that the last look found."""
        return dict(self._newest)

    def _look_on(self) -> None:
        with Client(self._url, timeout_s=TIMEOUT_S) as client:
            while not self._stop.wait(LOOK_S):
                try:
                    self._look(client.nodes())
                except ClientError as error:
                    print(f"the coordinator does not tell of its nodes: {error}", flush=True)

    def _look(self, nodes: list[dict[str, Any]]) -> None:
        now, found = time.monotonic(), {}
        for node in nodes:
            key = node["name"], node["incarnation"]
            life = self.lives.setdefault(key, NodeLife(*key[:1], node["role"], key[1], now))
            life.heard(node, now)
            found[life.name] = life
        self._newest = found

    def _read_on(self) -> None:
        while not self._stop.wait(MEMORY_S):
            started, serving = self._started(), self.serving()
            read = self._read_memory({name: one.pid for name, one in started.items()})
            now = time.monotonic()
            for name, life in serving.items():
                # An older life of this name may still be listed when the next one has begun.
                if name in read and life.seen_at > started[name].at:
                    life.readings.append((now, read[name]))
            gpus = {name: value for name, value in read.items() if name.startswith("gpu")}
            if gpus:
                self.gpus.append((now, gpus))

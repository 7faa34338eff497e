"""`Victims`: a running cluster with two coordinators, and what befalls its processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from infra.cluster import ClusterPlan, LocalCluster
from infra.ports import free_port
from infra.process import Child, Process
from infra.redis_server import server_command
from kvrelay.client import Client
from kvrelay.errors import ClientError
from tests.chaos.faults import Fault
from tests.chaos.networks import HERE, Networks, enter
from tests.support.processes.clusters import Cluster, wait_until
from tests.support.processes.forked import ForkedProcess

COORDINATORS = ("coordinator", "coordinator-2")
STARTED_AGAIN_AFTER_S = 0.5
MEBIBYTE = 1 << 20


class Victims:
    """Whoever has inflicted a fault has mended it when `inflict` returns."""

    def __init__(
        self, model: Path, directory: Path, networks: Networks | None, is_deterministic: bool
    ) -> None:
        """Starts the cluster."""
        self._networks = networks
        self.ports = (free_port(), free_port())
        plan = ClusterPlan(
            2,
            3,
            "127.0.0.1" if networks is None else "0.0.0.0",
            self.ports[0],
            coordinator_flags={"model_path": str(model), "drain_timeout_s": "2"},
            node_flags={
                "model_path": str(model),
                "kv_checksum": "true",
                "max_total_tokens": "32768",
                "max_running_requests": "32",
                "deterministic": "true" if is_deterministic else "false",
            },
            makes_secret=True,
            start_timeout_s=120.0,
            drain_timeout_s=2.0,
        )
        self.local = LocalCluster(plan, directory, start=self._start)
        directory.mkdir(parents=True, exist_ok=True)
        server = server_command(directory)
        self.local.redis_url = server.url
        self._redis_command = _reachable(server.command) if networks else server.command
        self._start_redis()
        self.local.start()
        try:
            self._start_coordinator(COORDINATORS[1])
            self.cluster = Cluster(self.local)
            self.admins = tuple(Client(f"http://127.0.0.1:{port}") for port in self.ports)
            self.wait_until_whole()
        except BaseException:
            self.local.stop()
            raise

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.local.plan.node_names

    def inflict(self, fault: Fault) -> None:
        """Lets a fault happen, and ends it: who was killed is started again, and serves."""
        child = self.local.children[fault.victim]
        if fault.kind in ("stop node", "stop redis"):
            child.process.send_signal(signal.SIGSTOP)
            time.sleep(fault.for_s)
            child.process.send_signal(signal.SIGCONT)
        elif fault.kind == "cut link":
            assert self._networks is not None
            self._networks.cut(fault.victim)
            time.sleep(fault.for_s)
            self._networks.mend(fault.victim)
        else:
            self._kill(child, with_children=fault.kind == "kill host")
            time.sleep(STARTED_AGAIN_AFTER_S)
            self._start_again(fault.victim)

    def wait_until_whole(self) -> None:
        """Until both coordinators know every node."""
        wait_until(
            lambda: all(_names(admin) == set(self.nodes) for admin in self.admins),
            "every node at both coordinators",
        )

    def wait_until_clean(self) -> dict[str, Any]:
        """Until nothing runs or is held, and the records of pages are true. Returns the audit."""
        self.cluster.wait_until_idle()
        return dict(
            wait_until(
                lambda: next((a for a in [self._audit()] if a.get("clean")), None), "a clean audit"
            )
        )

    def resident_mebibytes(self) -> dict[str, float]:
        """Returns the resident memory of each process with its children."""
        return {
            name: round(sum(_resident(p) for p in _family(child)) / MEBIBYTE, 1)
            for name, child in self.local.children.items()
            if name != "redis"
        }

    def stop(self) -> None:
        self.local.stop()

    def _audit(self) -> dict[str, Any]:
        try:
            return self.admins[0].audit(repair=False)
        except ClientError:
            return {}  # a node that has just come back may not answer yet

    def _kill(self, child: Child, with_children: bool) -> None:
        for process in _family(child) if with_children else []:
            process.kill()
        child.process.send_signal(signal.SIGKILL)
        child.wait()
        # The next life of this name would overwrite it.
        log_file = self.local.log_dir / f"{child.name}.log"
        if log_file.exists():
            log_file.rename(log_file.with_suffix(f".{child.process.pid}.log"))

    def _start_again(self, name: str) -> None:
        if name == "redis":
            self._start_redis()
        elif name in COORDINATORS:
            self._start_coordinator(name)
        else:
            self.local.start_planned_node(name)

    def _start_redis(self) -> None:
        log_file = self.local.log_dir / "redis.log"
        self.local.children["redis"] = Child(
            "redis", self._redis_command, log_file, lambda *_: None
        )

    def _start_coordinator(self, name: str) -> None:
        plan = self.local.plan
        port = self.ports[COORDINATORS.index(name)]
        flags = {**plan.coordinator_flags, "host": plan.host, "port": str(port)}
        self.local.start_process("coordinator", name, flags)

    def _start(self, command: Sequence[str]) -> Process:
        """Starts a process where its network is."""
        if self._networks is None:
            return ForkedProcess(command)
        words = [word.replace("redis://127.0.0.1", f"redis://{HERE}") for word in command]
        if "--name" not in words:
            return ForkedProcess([*words, "--advertise-host", HERE])
        name = words[words.index("--name") + 1]
        host = ["--host", self._networks.host_of(name)]
        return ForkedProcess([*words, *host], prepare=partial(enter, self._networks.file_of(name)))


def _reachable(command: Sequence[str]) -> list[str]:
    """Returns the command of Redis, which then listens on the bridge too."""
    at = command.index("--bind") + 1
    return [*command[:at], "127.0.0.1", HERE, *command[at + 1 :], "--protected-mode", "no"]


def _names(admin: Client) -> set[str]:
    try:
        return {node["name"] for node in admin.nodes()}
    except ClientError:
        return set()  # not listening yet


def _family(child: Child) -> list[psutil.Process]:
    try:
        process = psutil.Process(child.process.pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0

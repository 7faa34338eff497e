"""`LocalCluster`: Redis, one coordinator, prefill and decode nodes as processes of this host."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.config import CoordinatorConfig
from infra.command.log_directory import LogDirectory
from infra.gpus.assignment import GpuAssignment
from infra.ports import require_free
from infra.process import STOP_TIMEOUT_S, Child, Start, start_program
from infra.redis_server import check_reachable, require_free_names, server_command
from kvrelay.client import Client
from kvrelay.errors import ClientError
from protocol.errors import UserError
from protocol.trust.secrets import make_secret_file

POLL_S = 0.05
ASK_TIMEOUT_S = 2.0
"""How long the coordinator may take for one answer while it starts."""


@dataclass(frozen=True)
class ClusterPlan:
    """Which processes to start. Flags are settings as text, by their field names."""

    num_prefill: int
    num_decode: int
    host: str
    port: int
    """The coordinator's HTTP port."""
    redis_url: str = ""
    """An existing Redis; "" starts a private one."""
    coordinator_flags: Mapping[str, str] = field(default_factory=dict)
    node_flags: Mapping[str, str] = field(default_factory=dict)
    """The flags of all nodes."""
    prefill_flags: Mapping[str, str] = field(default_factory=dict)
    """Flags of prefill nodes alone, which replace those of all nodes."""
    decode_flags: Mapping[str, str] = field(default_factory=dict)
    """Flags of decode nodes alone, which replace those of all nodes."""
    assignments: Mapping[str, GpuAssignment] = field(default_factory=dict)
    """The GPUs of nodes by name. A node without one computes on what its --device says."""
    api_key: str = ""
    """A key that the coordinator takes; "" if it asks for none."""
    notes: tuple[str, ...] = ()
    """What whoever starts it should be told of its settings."""
    makes_secret: bool = False
    """True if the processes get a cluster secret of their own, in a file beside the logs."""
    start_timeout_s: float = 600.0
    """How long the nodes may take to register."""
    drain_timeout_s: float = CoordinatorConfig.drain_timeout_s
    """How long the coordinator goes on after it was told to stop, while requests run."""

    @property
    def node_names(self) -> tuple[str, ...]:
        """The names of the nodes, prefill nodes first."""
        return names_of_nodes(self.num_prefill, self.num_decode)


def names_of_nodes(num_prefill: int, num_decode: int) -> tuple[str, ...]:
    """Returns the names of a cluster's nodes, prefill nodes first."""
    return (
        *(f"p{i}" for i in range(num_prefill)),
        *(f"d{i}" for i in range(num_decode)),
    )


class StartError(UserError):
    """The cluster did not come up; the message has the reason and a child's last lines."""


def _silent(name: str, line: str) -> None:
    pass


class LocalCluster:
    """The processes of a plan. Use it as a context manager, or call `start` and `stop`."""

    def __init__(
        self,
        plan: ClusterPlan,
        log_dir: Path | None = None,
        on_line: Callable[[str, str], None] = _silent,
        start: Start = start_program,
    ) -> None:
        """Starts nothing yet. Logs go to `log_dir`; if it is None, to a directory that is removed
        at the end. Each line of a process goes to `on_line(process name, line)`, except Redis's."""
        self.plan = plan
        self._log_dir = log_dir
        self._own_logs: LogDirectory | None = None
        self.children: dict[str, Child] = {}
        self.redis_url = plan.redis_url
        self._on_line = on_line
        self._start = start
        self.secret_file: Path | None = None
        """The file with the secret that was made for this cluster; None without one."""

    @property
    def url(self) -> str:
        """The URL of the coordinator, as seen from this host."""
        host = "127.0.0.1" if self.plan.host in ("0.0.0.0", "::") else self.plan.host
        return f"http://{host}:{self.plan.port}"

    @property
    def log_dir(self) -> Path:
        """The directory of the logs; a temporary one is there between `start` and `stop`."""
        if self._log_dir is not None:
            return self._log_dir
        assert self._own_logs is not None, "the cluster does not run"
        return self._own_logs.path

    @property
    def admin_token(self) -> str:
        """The token that /admin/* of the coordinator asks for; "" if it asks for none."""
        given = self.plan.coordinator_flags.get("admin_token")
        return os.environ.get("KVRELAY_ADMIN_TOKEN", "") if given is None else given

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts all processes and waits until every node is registered.

        Raises ConfigError or StartError; nothing is left running then.
        """
        plan = self.plan
        require_free(plan.host, plan.port)
        if plan.redis_url:
            check_reachable(plan.redis_url)
            require_free_names(plan.redis_url, plan.node_names)
        if self._log_dir is None:
            self._own_logs = LogDirectory()
        self.log_dir.mkdir(parents=True, exist_ok=True)
        try:
            if plan.makes_secret:
                self.secret_file = self.log_dir / "cluster-secret"
                self.secret_file.unlink(missing_ok=True)
                make_secret_file(self.secret_file)
            if not self.redis_url:
                self._start_redis()
            self.start_process(
                "coordinator",
                "coordinator",
                {**plan.coordinator_flags, "host": plan.host, "port": str(plan.port)},
            )
            for name in plan.node_names:
                self.start_planned_node(name)
            self.wait_for_nodes()
        except BaseException:
            self.stop()
            raise

    def start_planned_node(self, name: str) -> Child:
        """Starts a node of the plan, or starts it again after its end."""
        return self.start_node("prefill" if name.startswith("p") else "decode", name)

    def start_node(self, role: str, name: str, own_flags: Mapping[str, str] | None = None) -> Child:
        """Starts a node, or starts it again after its end. `own_flags` replace the plan's."""
        plan = self.plan
        of_role = plan.prefill_flags if role == "prefill" else plan.decode_flags
        place = plan.assignments.get(name)
        flags = {**self._memory_share(place), **plan.node_flags, **of_role}
        if place is not None:
            flags["device"] = place.flags["device"]
        return self.start_process(role, name, {**flags, **(own_flags or {}), "name": name})

    def _memory_share(self, place: GpuAssignment | None) -> dict[str, str]:
        """Returns the flag that gives a node its share of its GPUs' memory, or of this host's where
        no GPUs were chosen for it; nothing if the environment sets it. Without it the first node
        would take all."""
        num_nodes = self.plan.num_prefill + self.plan.num_decode
        if num_nodes == 0 or os.environ.get("KVRELAY_MEMORY_SHARE"):
            return {}
        if place is not None:
            return {"memory_share": place.flags["memory_share"]}
        return {"memory_share": f"{1 / num_nodes:.4f}"}

    def start_process(self, command: str, name: str, flags: Mapping[str, str]) -> Child:
        """Starts `kvrelay command` with these flags, as the process `name` of the cluster."""
        words = [sys.executable, "-m", "infra.cli", command, "--redis-url", self.redis_url]
        if self.secret_file is not None:
            words += ["--cluster-secret-file", str(self.secret_file)]
        for flag, value in flags.items():
            words += _flag_words(flag, value)
        child = Child(name, words, self.log_dir / f"{name}.log", self._on_line, self._start)
        self.children[name] = child
        return child

    def wait_for_nodes(self) -> None:
        """Waits until the first coordinator lists every node that was started. Raises StartError,
        also when a process ends meanwhile."""
        deadline = time.monotonic() + self.plan.start_timeout_s
        expected = {
            name for name in self.children if name != "redis" and not name.startswith("coordinator")
        }
        with Client(self.url, self.admin_token, ASK_TIMEOUT_S, api_key=self.plan.api_key) as client:
            while True:
                self.raise_if_dead()
                try:
                    missing = expected - {node["name"] for node in client.nodes()}
                    if not missing:
                        return
                except ClientError:
                    missing = {"coordinator"}  # not listening yet
                if time.monotonic() > deadline:
                    raise StartError(
                        f"{', '.join(sorted(missing))} not ready within "
                        f"{self.plan.start_timeout_s:.0f} s; the last lines of {min(missing)}:\n"
                        f"{_indented(self.children[min(missing)].last_lines)}"
                    )
                time.sleep(POLL_S)

    def raise_if_dead(self) -> None:
        """Raises StartError if a process has ended, with the last lines that it logged."""
        for child in self.children.values():
            if not child.alive:
                raise ended(child)

    def stop(self) -> None:
        """Stops every process and waits for its end: coordinators first, whose requests go on as
        long as they drain; then nodes, which need not wait for what nobody asks for any more; then
        Redis, so that nodes can remove their records."""
        coordinators = [name for name in self.children if name.startswith("coordinator")]
        nodes = [name for name in self.children if name not in (*coordinators, "redis")]
        self._stop_all(coordinators, Child.terminate, self.plan.drain_timeout_s + STOP_TIMEOUT_S)
        self._stop_all(nodes, Child.interrupt, STOP_TIMEOUT_S)
        self._stop_all(list(self.children), Child.terminate, STOP_TIMEOUT_S)
        if self.secret_file is not None:
            self.secret_file.unlink(missing_ok=True)
            self.secret_file = None
        if self._own_logs is not None:
            self._own_logs.remove()
            self._own_logs = None

    def hurry(self) -> None:
        """Ends the waiting of coordinators that drain. May be called while `stop` runs."""
        for name, child in list(self.children.items()):
            if name.startswith("coordinator"):
                child.terminate()

    def _stop_all(
        self, names: Sequence[str], ask: Callable[[Child], None], timeout_s: float
    ) -> None:
        # All are asked to stop before any is waited for, so that they stop at the same time.
        for name in names:
            ask(self.children[name])
        for name in names:
            self.children[name].wait(timeout_s)
            del self.children[name]

    def _start_redis(self) -> None:
        """Starts a private Redis and waits until it answers. Raises ConfigError."""
        server = server_command(self.log_dir)
        self.redis_url = server.url
        self.children["redis"] = Child("redis", server.command, self.log_dir / "redis.log", _silent)
        server.wait_until_ready(self.children["redis"])


def ended(child: Child) -> StartError:
    """Returns the error for a process that has ended, with the last lines that it logged."""
    child.wait()  # for the thread that reads its output: the last lines tell most
    return StartError(
        f"{child.name} ended with exit code {child.process.returncode}; "
        f"its last lines:\n{_indented(child.last_lines)}"
    )


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _flag_words(flag: str, value: str) -> list[str]:
    """Returns a setting as words of a command line: a flag with its value, a flag alone for a true
    boolean, nothing for a false one."""
    name = "--" + flag.replace("_", "-")
    if value == "true":
        return [name]
    return [] if value == "false" else [name, value]

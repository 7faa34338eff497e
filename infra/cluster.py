"""`LocalCluster`: Redis, one coordinator, prefill and decode nodes as processes of this host."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.ports import require_free
from infra.process import Child, Start, start_program
from infra.redis_server import check_reachable, server_command
from kvrelay.client import Client
from kvrelay.errors import ClientError
from protocol.errors import UserError

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
    start_timeout_s: float = 600.0
    """How long the nodes may take to register."""


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
        """Starts nothing yet. Logs go to `log_dir`, or a new directory if it is None, and each line
        of a process other than Redis to `on_line(process name, line)`."""
        self.plan = plan
        self.log_dir = log_dir or Path(tempfile.mkdtemp(prefix="kvrelay-"))
        self.children: dict[str, Child] = {}
        self.redis_url = plan.redis_url
        self._on_line = on_line
        self._start = start

    @property
    def url(self) -> str:
        """The URL of the coordinator, as seen from this host."""
        host = "127.0.0.1" if self.plan.host in ("0.0.0.0", "::") else self.plan.host
        return f"http://{host}:{self.plan.port}"

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
        self.log_dir.mkdir(parents=True, exist_ok=True)
        try:
            if self.redis_url:
                check_reachable(self.redis_url)
            else:
                self._start_redis()
            self.start_process(
                "coordinator",
                "coordinator",
                {**plan.coordinator_flags, "host": plan.host, "port": str(plan.port)},
            )
            for i in range(plan.num_prefill):
                self.start_node("prefill", f"p{i}")
            for i in range(plan.num_decode):
                self.start_node("decode", f"d{i}")
            self.wait_for_nodes()
        except BaseException:
            self.stop()
            raise

    def start_node(self, role: str, name: str, own_flags: Mapping[str, str] | None = None) -> Child:
        """Starts a node, or starts it again after its end. `own_flags` replace the plan's."""
        plan = self.plan
        of_role = plan.prefill_flags if role == "prefill" else plan.decode_flags
        flags = {**self._memory_share(), **plan.node_flags, **of_role, **(own_flags or {})}
        return self.start_process(role, name, {**flags, "name": name})

    def _memory_share(self) -> dict[str, str]:
        """Returns the flag that gives each node its share of this host's memory, or of its one
        GPU; nothing if the environment sets it. Without it the first node would take all."""
        num_nodes = self.plan.num_prefill + self.plan.num_decode
        if num_nodes == 0 or os.environ.get("KVRELAY_MEMORY_SHARE"):
            return {}
        return {"memory_share": f"{1 / num_nodes:.4f}"}

    def start_process(self, command: str, name: str, flags: Mapping[str, str]) -> Child:
        """Starts `kvrelay command` with these flags, as the process `name` of the cluster."""
        words = [sys.executable, "-m", "infra.cli", command, "--redis-url", self.redis_url]
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
        with Client(self.url, self.admin_token, ASK_TIMEOUT_S) as client:
            while True:
                self.raise_if_dead()
                try:
                    if expected <= {node["name"] for node in client.nodes()}:
                        return
                except ClientError:
                    pass  # not listening yet
                if time.monotonic() > deadline:
                    raise StartError(
                        f"not every node was ready within {self.plan.start_timeout_s:.0f} s; "
                        f"see the logs in {self.log_dir}"
                    )
                time.sleep(POLL_S)

    def raise_if_dead(self) -> None:
        """Raises StartError if a process has ended, with the last lines that it logged."""
        for child in self.children.values():
            if not child.alive:
                child.wait()  # for the thread that reads its output: the last lines tell most
                lines = "\n".join(f"  {line}" for line in child.last_lines)
                raise StartError(
                    f"{child.name} ended with exit code {child.process.returncode}; "
                    f"its last lines:\n{lines}"
                )

    def stop(self) -> None:
        """Stops every process and waits for its end. Redis is last, so that nodes can remove their
        records from it."""
        redis = self.children.pop("redis", None)
        # All are asked to stop before any is waited for, so that they stop at the same time.
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            child.wait()
        if redis is not None:
            redis.terminate()
            redis.wait()
        self.children.clear()

    def _start_redis(self) -> None:
        """Starts a private Redis and waits until it answers. Raises ConfigError."""
        server = server_command(self.log_dir)
        self.redis_url = server.url
        self.children["redis"] = Child("redis", server.command, self.log_dir / "redis.log", _silent)
        server.wait_until_ready(self.children["redis"])


def _flag_words(flag: str, value: str) -> list[str]:
    """Returns a setting as words of a command line: a flag with its value, a flag alone for a true
    boolean, nothing for a false one."""
    name = "--" + flag.replace("_", "-")
    if value == "true":
        return [name]
    return [] if value == "false" else [name, value]

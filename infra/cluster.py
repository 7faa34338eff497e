"""A whole cluster on this host: Redis, one coordinator, prefill and decode nodes as processes."""

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
from kvrelay.client import Client, ClientError
from protocol.errors import UserError

POLL_S = 0.05
ASK_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class ClusterPlan:
    """What to start. `*_flags` are `name: text` of the settings of each kind of process; those in
    `prefill_flags` and `decode_flags` go before `node_flags`.

    `redis_url` "": a private Redis is started too.
    """

    num_prefill: int
    num_decode: int
    host: str
    port: int
    redis_url: str = ""
    coordinator_flags: Mapping[str, str] = field(default_factory=dict)
    node_flags: Mapping[str, str] = field(default_factory=dict)
    prefill_flags: Mapping[str, str] = field(default_factory=dict)
    decode_flags: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 600.0


class StartError(UserError):
    """The cluster did not come up; the message has the reason and a child's last lines."""


def _silent(name: str, line: str) -> None:
    pass


class LocalCluster:
    """Use as a context manager: `with LocalCluster(plan) as cluster: …`, or `start` and `stop`.

    `on_line(process name, line)` sees every line that a process logs. `start` starts the processes.
    """

    def __init__(
        self,
        plan: ClusterPlan,
        log_dir: Path | None = None,
        on_line: Callable[[str, str], None] = _silent,
        start: Start = start_program,
    ) -> None:
        self.plan = plan
        self.log_dir = log_dir or Path(tempfile.mkdtemp(prefix="kvrelay-"))
        self.children: dict[str, Child] = {}
        self.redis_url = plan.redis_url
        self._on_line = on_line
        self._start = start

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.plan.host in ("0.0.0.0", "::") else self.plan.host
        return f"http://{host}:{self.plan.port}"

    @property
    def admin_token(self) -> str:
        """That /admin/* of the coordinator asks for; "": none."""
        given = self.plan.coordinator_flags.get("admin_token")
        return os.environ.get("KVRELAY_ADMIN_TOKEN", "") if given is None else given

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when every node is registered. Raises ConfigError or StartError; then nothing
        is left running."""
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
        """Starts a node, or starts it again. `own_flags` go before those of the plan."""
        plan = self.plan
        of_role = plan.prefill_flags if role == "prefill" else plan.decode_flags
        flags = {**self._memory_share(), **plan.node_flags, **of_role, **(own_flags or {})}
        return self.start_process(role, name, {**flags, "name": name})

    def _memory_share(self) -> dict[str, str]:
        """The nodes of a plan share this host's memory, or its one device."""
        num_nodes = self.plan.num_prefill + self.plan.num_decode
        if num_nodes == 0 or os.environ.get("KVRELAY_MEMORY_SHARE"):
            return {}
        return {"memory_share": f"{1 / num_nodes:.4f}"}

    def start_process(self, command: str, name: str, flags: Mapping[str, str]) -> Child:
        words = [sys.executable, "-m", "infra.cli", command, "--redis-url", self.redis_url]
        for flag, value in flags.items():
            words += _flag_words(flag, value)
        child = Child(name, words, self.log_dir / f"{name}.log", self._on_line, self._start)
        self.children[name] = child
        return child

    def wait_for_nodes(self) -> None:
        """Until the first coordinator sees every node that was started. Raises StartError."""
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
        """Raises StartError with the last lines of a process that has ended."""
        for child in self.children.values():
            if not child.alive:
                child.wait()
                lines = "\n".join(f"  {line}" for line in child.last_lines)
                raise StartError(
                    f"{child.name} ended with exit code {child.process.returncode}; "
                    f"its last lines:\n{lines}"
                )

    def stop(self) -> None:
        """Stops every process and waits for it; Redis last, so that nodes can say goodbye."""
        redis = self.children.pop("redis", None)
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            child.wait()
        if redis is not None:
            redis.terminate()
            redis.wait()
        self.children.clear()

    def _start_redis(self) -> None:
        server = server_command(self.log_dir)
        self.redis_url = server.url
        self.children["redis"] = Child("redis", server.command, self.log_dir / "redis.log", _silent)
        server.wait_until_ready(self.children["redis"])


def _flag_words(flag: str, value: str) -> list[str]:
    name = "--" + flag.replace("_", "-")
    if value == "true":
        return [name]
    return [] if value == "false" else [name, value]

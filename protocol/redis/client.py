"""Makes clients of Redis for every kind of Redis URL (see `protocol.redis.url`).

The clients never repeat a command by themselves. A command that was repeated after a failover would
hide that the new master lacks what the old one had confirmed; only the caller knows what to write
again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.cluster
import redis.retry
import redis.sentinel
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import RedisClusterException, RedisError

from protocol.config import ConfigError, hide_password
from protocol.redis.url import RedisUrl

REDIS_ERRORS = (RedisError, RedisClusterException, OSError, asyncio.TimeoutError)
"""All exceptions that a client raises because of Redis or the way to it, failovers included."""


def connect(url: str, timeout_s: float) -> Any:
    """Returns a client with redis-py's commands; each of its waits ends after `timeout_s`.

    Raises ConfigError for a wrong URL. No connection is opened yet, except to a Cluster: for that
    it asks the servers, and raises one of REDIS_ERRORS when none of them answers.
    """
    address, options = _parse(url, timeout_s)
    retry = redis.retry.Retry(NoBackoff(), 0)
    if address.kind == "server":
        return redis.Redis.from_url(address.plain, retry=retry, **options)
    options |= _of_plain(address)
    if address.kind == "cluster":
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in address.hosts]
        del options["db"]
        return redis.cluster.RedisCluster(startup_nodes=nodes, retry=retry, **options)
    own = _for_sentinels(options)
    sentinel = redis.sentinel.Sentinel(
        address.hosts, sentinel_kwargs={"retry": retry, **own}, retry=retry, **options
    )
    return sentinel.master_for(address.service)


def connect_async(url: str, timeout_s: float) -> Any:
    """Returns a client as `connect` does, for asyncio. Never opens a connection yet. Raises
    ConfigError for a wrong URL."""
    address, options = _parse(url, timeout_s)
    retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
    if address.kind == "server":
        return redis.asyncio.Redis.from_url(address.plain, retry=retry, **options)
    options |= _of_plain(address)
    if address.kind == "cluster":
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in address.hosts]
        del options["db"]
        return redis.asyncio.cluster.RedisCluster(startup_nodes=nodes, retry=retry, **options)
    own = _for_sentinels(options)
    sentinel = redis.asyncio.sentinel.Sentinel(
        address.hosts, sentinel_kwargs={"retry": retry, **own}, retry=retry, **options
    )
    return sentinel.master_for(address.service)


def _parse(url: str, timeout_s: float) -> tuple[RedisUrl, dict[str, Any]]:
    """Returns the parts of `url` and the options that all clients have. Raises ConfigError."""
    options: dict[str, Any] = {
        "protocol": 2,  # with RESP3 the replies to XREAD have another shape
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    try:
        address = RedisUrl.parse(url)
    except ValueError as error:
        raise ConfigError(f"the Redis URL {hide_password(url)!r} is wrong: {error}") from error
    if address.password_file:
        options["password"] = _password_in(address.password_file)
    return address, options


def _password_in(file: str) -> str:
    """Returns the password in a file, without the white space around it. Raises ConfigError."""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the password file of the Redis URL, {file}, cannot be read ({error}); name one that "
            "can, or write the password into the URL"
        ) from error


def _of_plain(address: RedisUrl) -> dict[str, Any]:
    """Returns credentials, database and options of the URL as keyword arguments of redis-py."""
    options: dict[str, Any] = dict(parse_url(address.plain))
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    return options | ({"ssl": True} if address.tls else {})


def _for_sentinels(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options for connections to the Sentinels themselves, which may have credentials
    of their own. Removes those from `options`, which are then those for Redis."""
    own = {
        name.removeprefix("sentinel_"): options.pop(name)
        for name in ("sentinel_username", "sentinel_password")
        if name in options
    }
    shared = {
        name: value
        for name, value in options.items()
        if name == "protocol" or name.startswith(("socket_", "ssl"))
    }
    return shared | own

"""Clients of Redis, for every kind of Redis URL (see `protocol.redis_url`).

A client repeats nothing by itself: a command that was repeated after a failover would hide that
the new master lacks what the old one had confirmed. Who calls, retries, and knows what to rewrite.
"""

from __future__ import annotations

import asyncio
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
"""All that a client raises because of Redis or the way to it; also during a failover."""


def connect(url: str, timeout_s: float) -> Any:
    """A client of any kind, with redis-py's commands; every wait of it ends after `timeout_s`.

    Opens no connection yet, unless `url` is of a Cluster: then raises one of REDIS_ERRORS when no
    server of it answers. Raises ConfigError for a wrong URL.
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
    """The same for asyncio; never opens a connection yet. Raises ConfigError for a wrong URL."""
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
    options = {
        "protocol": 2,  # XREAD answers in another shape on RESP3
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    try:
        return RedisUrl.parse(url), options
    except ValueError as error:
        raise ConfigError(f"the Redis URL {hide_password(url)!r} is wrong: {error}") from error


def _of_plain(address: RedisUrl) -> dict[str, Any]:
    """Credentials, db and options of the URL as keyword arguments."""
    options: dict[str, Any] = dict(parse_url(address.plain))
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    return options | ({"ssl": True} if address.tls else {})


def _for_sentinels(options: dict[str, Any]) -> dict[str, Any]:
    """How to reach the Sentinels themselves; takes their credentials out of `options`."""
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

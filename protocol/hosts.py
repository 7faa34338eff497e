"""Which of its addresses a process tells its peers."""

from __future__ import annotations

import ipaddress
import socket

from protocol.config import ConfigError
from protocol.redis.url import RedisUrl

ALL_INTERFACES = ("0.0.0.0", "::", "")
ANYWHERE = "192.0.2.1"
"""An address for documentation (RFC 5737): the route to it is the default route."""


def advertised_host(host: str, advertise_host: str, redis_url: str) -> str:
    """The address peers use: as configured, else the one listened on, else the one from which
    this host reaches Redis, as its peers must too. Sends nothing. Raises ConfigError."""
    if advertise_host:
        return advertise_host
    if host not in ALL_INTERFACES:
        return host
    peers = [redis_host for redis_host, _ in RedisUrl.parse(redis_url).hosts] + [ANYWHERE]
    found = [address for peer in peers if (address := _source_address(peer))]
    usable = [address for address in found if not ipaddress.ip_address(address).is_loopback]
    if not (usable or found):
        raise ConfigError(
            "this host has no address that others could use; name one with --advertise-host"
        )
    return (usable or found)[0]


def _source_address(peer: str) -> str:
    """The IPv4 address of this host on the way to `peer`; "" when there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 1))
            return str(probe.getsockname()[0])
    except OSError:
        return ""

"""Decides which of its addresses a process tells its peers."""

from __future__ import annotations

import ipaddress
import socket

from protocol.config import ConfigError
from protocol.redis.url import RedisUrl

ALL_INTERFACES = ("0.0.0.0", "::", "")
"""What a process listens on if it listens on all interfaces: no address that peers could use."""
ANYWHERE = "192.0.2.1"
"""An address reserved for documentation (RFC 5737): the way to it is the default route."""


def advertised_host(host: str, advertise_host: str, redis_url: str) -> str:
    """Returns the host or address under which peers reach a process that listens on `host`.

    It is `advertise_host` if that is set, else `host`. If that is all interfaces, it is the
    address from which this host reaches Redis, which its peers must reach too, or else the
    internet. Sends no packet. Raises ConfigError if this host has no address.
    """
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
    """Returns the IPv4 address that this host has on the way to `peer`; "" if there is no way."""
    try:
        # Connecting a UDP socket sends nothing: it only makes the system choose a route.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 1))
            return str(probe.getsockname()[0])
    except OSError:
        return ""

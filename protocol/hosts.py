"""Which of its addresses a process tells its peers."""

from __future__ import annotations

import socket

ALL_INTERFACES = ("0.0.0.0", "::", "")


def advertised_host(host: str, advertise_host: str) -> str:
    """The address peers use: as configured, else the one listened on, else this host's own."""
    if advertise_host:
        return advertise_host
    if host not in ALL_INTERFACES:
        return host
    return socket.gethostbyname(socket.gethostname())

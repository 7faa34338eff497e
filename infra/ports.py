"""Finds and checks free TCP ports of this host."""

from __future__ import annotations

import errno
import random
import socket

from protocol.config import ConfigError

LISTENING = range(20_000, 32_768)
"""Ports to listen on: those above are given to outgoing connections (Linux's default)."""


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a port that was free a moment ago, and that no connection is given before it is used.
    Only another process that looks for one may take it. Raises ConfigError if there is none."""
    for port in random.sample(LISTENING, k=100):
        try:
            require_free(host, port)
        except ConfigError:
            continue
        return port
    raise ConfigError(f"none of 100 ports of {LISTENING} is free on {host}; name one with --port")


def require_free(host: str, port: int) -> None:
    """Raises ConfigError unless a process can listen on this host and port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            is_taken = error.errno == errno.EADDRINUSE
            problem = "is taken" if is_taken else f"cannot be used ({error.strerror})"
            flags = "--port" if is_taken else "--port or --host"
            raise ConfigError(
                f"port {port} on {host} {problem}; choose another with {flags}"
            ) from error

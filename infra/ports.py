"""Finds and checks free TCP ports of this host."""

from __future__ import annotations

import errno
import socket

from protocol.config import ConfigError


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a port that was free a moment ago; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


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

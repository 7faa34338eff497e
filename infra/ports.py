"""Finds and checks free TCP ports of this host."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

from protocol.config import ConfigError

LISTENING = range(20_000, 32_768)
"""Ports to listen on: those above are given to outgoing connections (Linux's default)."""

LISTEN = "0A"
"""The state of a listening socket in Linux's tables."""


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
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"port {port} on {host} is taken by {_holder(port)}; choose another with --port"
                ) from error
            raise ConfigError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another with "
                "--port or --host"
            ) from error


def _holder(port: int) -> str:
    """Returns who listens on a port of this host: a process and the beginning of its command, or
    "another process" where the system does not tell."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(file) in inodes for file in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                # No more words: those that follow may be secrets.
                shown = " ".join([Path(words[0]).name, *words[1:3]]).strip()
                return f"process {process.name} ({shown})"
        except OSError:
            continue  # it has ended, or belongs to another user
    return "another process"


def _listening_inodes(port: int) -> Iterator[str]:
    """Yields the inodes of the sockets that listen on a port, as Linux lists them."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = fields = line.split()
            if state == LISTEN and int(local.rpartition(":")[2], 16) == port:
                yield fields[9]

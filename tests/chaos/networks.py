"""`Networks`: a network of its own for each node, which can be cut from all others."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

HERE = "10.213.78.1"
"""The address of this host on the bridge that connects all."""


class Networks:
    """One network namespace per node, each with a virtual cable to one bridge. Needs root."""

    def __init__(self, nodes: Sequence[str]) -> None:
        """Makes all of them. Raises PermissionError where that is not allowed."""
        # Interfaces have names of at most 15 characters.
        self._prefix = f"k{os.getpid() % 1_000_000}"
        self._undo = ExitStack()
        self._numbers = {name: number for number, name in enumerate(nodes)}
        try:
            self._make()
        except BaseException:
            self._undo.close()
            raise

    def host_of(self, node: str) -> str:
        """Returns the address of a node."""
        return f"10.213.78.{10 + self._numbers[node]}"

    def file_of(self, node: str) -> Path:
        """Returns the file by which a process enters the namespace of a node."""
        return Path("/run/netns") / self._name_of(node)

    def cut(self, node: str) -> None:
        """Lets nothing through to or from a node. No socket is closed by that."""
        _ip("link", "set", self._name_of(node), "down")

    def mend(self, node: str) -> None:
        """Lets everything through again."""
        _ip("link", "set", self._name_of(node), "up")

    def close(self) -> None:
        """Removes them."""
        self._undo.close()

    def _name_of(self, node: str) -> str:
        return f"{self._prefix}n{self._numbers[node]}"

    def _make(self) -> None:
        bridge = f"{self._prefix}b"
        _ip("link", "add", bridge, "type", "bridge")
        self._undo.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{HERE}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for node in self._numbers:
            name = self._name_of(node)
            _ip("netns", "add", name)
            self._undo.callback(_ip, "netns", "del", name)
            inside = ("netns", "exec", name, "ip")
            _ip("link", "add", name, "type", "veth", "peer", "name", "there", "netns", name)
            self._undo.callback(_ip, "link", "del", name)  # and its other end
            _ip("link", "set", name, "master", bridge)
            _ip("link", "set", name, "up")
            _ip(*inside, "link", "set", "lo", "up")
            _ip(*inside, "addr", "add", f"{self.host_of(node)}/24", "dev", "there")
            _ip(*inside, "link", "set", "there", "up")


def networks_for(nodes: Sequence[str]) -> Networks | None:
    """Returns networks for these nodes; None, and says why, where there can be none."""
    try:
        return Networks(nodes)
    except PermissionError as error:
        print(f"links are not cut: {error}")
        return None


def enter(namespace: Path) -> None:
    """Puts this process, and what it starts, into a network namespace."""
    with namespace.open() as opened:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(opened.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), "setns", str(namespace))


def _ip(*words: str) -> None:
    """Runs `ip` with these words. Raises PermissionError if it fails or is not there."""
    if shutil.which("ip") is None:
        raise PermissionError("there is no program `ip`")
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PermissionError(f"`ip {' '.join(words)}` says: {done.stderr.strip()}")

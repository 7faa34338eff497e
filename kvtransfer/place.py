"""Finds out where this process runs. Two nodes compare their places to choose how pages travel."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch

from kvtransfer.links.handshake import Place


def place_of(device: torch.device) -> Place:
    """Returns the place of a rank of this process that computes on `device`."""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return Place(_host(), gpu)


def _host() -> str:
    """Returns a name that is equal for all processes of one boot, network namespace and user.

    Those can share memory through an abstract Unix socket; a host name would also be equal for
    containers that cannot. Where /proc does not tell (not Linux), no other process has this name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}/{os.getuid()}"
    except OSError:
        return f"{socket.gethostname()}/{os.getpid()}"

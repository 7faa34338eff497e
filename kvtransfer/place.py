"""Where this process runs, as its peers need to know it to choose how pages travel."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch

from kvtransfer.links.handshake import Place


def place_of(device: torch.device) -> Place:
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return Place(_host(), gpu)


def _host() -> str:
    """Equal for processes of one boot, one network namespace and one user: these can share memory
    through an abstract socket. Unique where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}/{os.getuid()}"
    except OSError:
        return f"{socket.gethostname()}/{os.getpid()}"

"""What this process has of the machine: how much memory it uses, from /proc, and when Python
looks for garbage."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

GC_THRESHOLDS = (20_000, 20, 100)


def leave_garbage_be() -> None:
    """Has Python look for cycles in garbage seldom, and never again in what is here now.

    torch alone brings 200,000 objects: to look through them holds up a step for 0.1 s.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def resident_bytes() -> int:
    """Returns the resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


CGROUPS = Path("/sys/fs/cgroup")
"""The control groups of a container: in it, their root is its own group."""
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Versions 2 and 1 of what says how much memory a group may have, how much it has, and of what
kind that is."""
FILE_CACHE = ("active_file", "inactive_file")
"""What files have left in memory; the system takes it back when somebody needs it."""


def host_memory_bytes(cgroups: Path = CGROUPS) -> tuple[int, int]:
    """Returns how much memory is free for this process, and how much there is in all: of this host,
    or of the container that it is in if that may have less."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page_bytes
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            lines = dict(line.split(":", 1) for line in meminfo)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        available = total // 2  # this system does not tell
    limit, used = _container_bytes(cgroups)
    return min(available, max(0, limit - used)), min(total, limit)


def _container_bytes(cgroups: Path) -> tuple[int, int]:
    """Returns how much memory the container may have and how much it has, but for what the system
    can take back; where nothing is limited, a limit beyond all memory."""
    for limit_file, usage_file, kinds_file in CGROUP_FILES:
        try:
            limit = int((cgroups / limit_file).read_text())
            usage = int((cgroups / usage_file).read_text())
            lines = (line.split() for line in (cgroups / kinds_file).read_text().splitlines())
            kinds = {words[0]: int(words[1]) for words in lines}
        except (OSError, ValueError, IndexError):  # not this version; "max": no limit
            continue
        return limit, usage - sum(kinds.get(kind, 0) for kind in FILE_CACHE)
    return sys.maxsize, 0

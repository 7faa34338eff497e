"""What this process has of the machine: how much memory it uses, from /proc, and when Python
looks for garbage."""

from __future__ import annotations

import gc
import os

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


def host_memory_bytes() -> tuple[int, int]:
    """Returns how much memory of this host is free, and how much there is in all."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page_bytes
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            lines = dict(line.split(":", 1) for line in meminfo)
        return int(lines["MemAvailable"].split()[0]) * 1024, total
    except (OSError, KeyError):
        return total // 2, total  # this system does not tell

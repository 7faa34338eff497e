"""How much memory the processes of a cluster have: of GPUs if there are any, else of the host."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.memory import resident_bytes_of

MEBIBYTE = 1 << 20
TIMEOUT_S = 10.0
ReadMemory = Callable[[Mapping[str, int]], Mapping[str, float]]
"""Takes the process ids of nodes by name. Returns their mebibytes by name, and those of GPUs by
`gpu0`, `gpu1`, …"""


def host_memory(pids: Mapping[str, int]) -> dict[str, float]:
    """Returns the resident memory of each node, without that of its companion."""
    found = {}
    for name, pid in pids.items():
        try:
            found[name] = round(resident_bytes_of(pid) / MEBIBYTE, 1)
        except (OSError, RuntimeError):
            continue  # it was killed just now
    return found


def gpu_memory(pids: Mapping[str, int]) -> dict[str, float]:
    """Returns the GPU memory of each node and of each GPU as a whole. Nodes are missing where the
    driver knows processes by other ids, as in some containers."""
    used = _rows("--query-gpu=index,memory.used")
    found = {f"gpu{index}": float(mebibytes) for index, mebibytes in used} or _asked_of_torch()
    names = {pid: name for name, pid in pids.items()}
    for pid, mebibytes in _rows("--query-compute-apps=pid,used_memory"):
        if pid.isdecimal() and (name := names.get(int(pid))) and mebibytes.isdecimal():
            found[name] = found.get(name, 0.0) + float(mebibytes)
    return found


def _asked_of_torch() -> dict[str, float]:
    """Returns the memory in use of each GPU. What this process takes by asking is among it."""
    found = {}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found[f"gpu{number}"] = round((total - free) / MEBIBYTE, 1)
    return found


def _rows(query: str) -> list[tuple[str, str]]:
    """Asks nvidia-smi; returns pairs of words, none if it does not answer."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return rows_of(asked.stdout.splitlines())


def rows_of(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the two columns of nvidia-smi's lines; lines of other forms are left out."""
    rows = [[word.strip() for word in line.split(",")] for line in lines]
    return [(row[0], row[1]) for row in rows if len(row) == 2]

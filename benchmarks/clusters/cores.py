"""Which core each process of a measurement gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


@dataclass(frozen=True)
class Cores:
    """The numbers of the cores of each group of processes; no two groups share one."""

    coordinators: Sequence[int]
    """One for each coordinator process, or one for all of them."""
    clients: Sequence[int]
    """One for each process that asks."""
    others: int
    """For nodes, Redis and whatever else runs."""


def cores_for(workers: int, usable: Sequence[int]) -> Cores:
    """Divides the usable cores, of which there must be two.

    With one for each coordinator and two more, every process under test has a core of its own, and
    as many clients as there are coordinators have theirs, or those that are left. With fewer, the
    coordinators share the first core and everything else the second.
    """
    first, second, *_ = usable
    if len(usable) < workers + 2:
        return Cores([first], [second], second)
    coordinators, others, rest = usable[:workers], usable[workers], usable[workers + 1 :]
    return Cores(coordinators, rest[:workers], others)


def usable_cores() -> list[int]:
    """Returns the cores that this process may use: first one of each pair that shares the circuits
    of one physical core, then their siblings."""
    usable = sorted(os.sched_getaffinity(0))
    leaders = [core for core in usable if core == min(_siblings(core, usable))]
    return leaders + [core for core in usable if core not in leaders]


def _siblings(core: int, usable: Sequence[int]) -> list[int]:
    """Returns those of `usable` that share a physical core with `core`, which is among them."""
    try:
        text = Path(TOPOLOGY.format(core)).read_text()
    except OSError:
        return [core]  # the system does not tell
    ranges = [part.partition("-") for part in text.strip().split(",")]
    found = {n for low, _, high in ranges for n in range(int(low), int(high or low) + 1)}
    return [one for one in usable if one in found or one == core]

"""When a process that ended is started again, and the status of a parent by those of its workers.
Pure."""

from __future__ import annotations

import signal
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0
STEADY_AFTER_S = 30.0
"""A process that lived so long had started well: it does not wait longer than the first time."""
CALM_STATUSES = (0, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a worker that ended as it was told to. A negative one is minus a signal's number,
as `multiprocessing` and `subprocess` tell it."""


Key = TypeVar("Key", bound=Hashable)
"""What names a process: the number of a worker, or the name of a node."""


class Restarts(Generic[Key]):
    """Plans the restarts of processes that end. The next wait is twice the last one, unless the
    process has lived for long."""

    def __init__(self) -> None:
        self._started_at: dict[Key, float] = {}
        self._waits_s: dict[Key, float] = {}
        """How long each process waited before its last restart."""
        self._due_at: dict[Key, float] = {}
        """When processes that have ended are to start again."""

    def started(self, key: Key, now: float) -> None:
        """Notes that a process was started, for the first time or again."""
        self._started_at[key] = now
        self._due_at.pop(key, None)

    def ended(self, key: Key, now: float) -> float:
        """Notes that a process has ended by itself. Returns in how many seconds it starts again."""
        is_steady = now - self._started_at[key] >= STEADY_AFTER_S
        last_s = 0.0 if is_steady else self._waits_s.get(key, 0.0)
        wait_s = min(max(FIRST_WAIT_S, 2 * last_s), LONGEST_WAIT_S)
        self._waits_s[key] = wait_s
        self._due_at[key] = now + wait_s
        return wait_s

    def is_waiting(self, key: Key) -> bool:
        """Returns True if the process has ended and is to start again."""
        return key in self._due_at

    def due(self, now: float) -> list[Key]:
        """Returns the processes that are to be started now."""
        return [key for key, due_at in self._due_at.items() if due_at <= now]

    def wake_in_s(self, now: float) -> float | None:
        """Returns in how many seconds `due` has a process; None if all run."""
        return max(0.0, min(self._due_at.values()) - now) if self._due_at else None


def worst_status(exit_codes: Iterable[int]) -> int:
    """Returns the exit status of a parent whose workers were told to stop and ended with these
    codes: 0 if all ended as told, else the largest, where a signal counts as 128 and its number."""
    bad = [code for code in exit_codes if code not in CALM_STATUSES]
    return max((code if code >= 0 else 128 - code for code in bad), default=0)

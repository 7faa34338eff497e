"""`LogDirectory`: where a launcher's processes log, in the system's temporary directory.

It is removed when the launcher ends. One whose launcher was killed is removed by the next launcher
that makes one: a lock, which the system drops with the process, tells which those are.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "kvrelay-logs-"
LOCK = "in-use"


class LogDirectory:
    """A directory that exists until `remove`."""

    def __init__(self, parent: Path | None = None) -> None:
        """Makes it in `parent`, or in the system's temporary directory, and removes there those
        that nobody uses any more."""
        parent = parent or Path(tempfile.gettempdir())
        _remove_abandoned(parent)
        # It has its lock before it has a name by which others take it for abandoned.
        made = Path(tempfile.mkdtemp(prefix="kvrelay-new-", dir=parent))
        self._lock = os.open(made / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = made.rename(parent / made.name.replace("kvrelay-new-", PREFIX))

    def remove(self) -> None:
        """Removes it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned(parent: Path) -> None:
    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        try:
            descriptor = os.open(lock, os.O_RDWR)
        except OSError:
            continue  # another user's, or just removed
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
        except BlockingIOError:
            pass  # its launcher lives
        finally:
            os.close(descriptor)

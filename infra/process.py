"""`Child`: a process that is started, whose output is kept, and that is stopped for certain."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

KEPT_LINES = 30
"""The last lines of output that are kept for error messages."""
STOP_TIMEOUT_S = 10.0
"""How long a process may take to stop before it is killed."""
PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that sets the signal for the parent's death."""


def _die_with_parent() -> None:
    """Runs in the new process: has it get SIGTERM when its launcher dies, however that happens, so
    that no node is left behind. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A running process. Its output goes to a log file and, line by line, to a callback."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        on_line: Callable[[str, str], None],
    ) -> None:
        self.name = name
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._on_line = on_line
        # In a session of its own, Ctrl-C does not reach it: the launcher stops all in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self.process.stdout, log_file), daemon=True
        )
        self._reader.start()

    @property
    def alive(self) -> bool:
        """True until the process has ended."""
        return self.process.poll() is None

    def terminate(self) -> None:
        """Asks the process to stop (SIGTERM). Does not wait; `wait` makes sure."""
        if self.alive:
            self.process.terminate()

    def wait(self) -> None:
        """Waits for the end of the process and of its output; kills it after STOP_TIMEOUT_S."""
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=1.0)

    def _read(self, stream: IO[str], log_file: Path) -> None:
        """Passes on the output of the process until its end."""
        # Whatever becomes of a line, the next one is read: a full pipe would stop the process.
        with log_file.open("w", encoding="utf-8") as log:
            for line in stream:
                self.last_lines.append(line.rstrip())
                try:
                    log.write(line)
                    log.flush()
                    self._on_line(self.name, line.rstrip())
                except (OSError, ValueError):
                    pass  # the disk is full, or nobody reads our own output any more

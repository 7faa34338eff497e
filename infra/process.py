"""One child process with its log: started, watched, and stopped for certain."""

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
STOP_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child: SIGTERM when the launcher dies without stopping it. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """Output goes to `log_file`, line by line to `on_line`, and its end is kept for errors."""

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
        # A session of its own: Ctrl-C reaches the launcher alone, which stops all in order.
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
        return self.process.poll() is None

    def terminate(self) -> None:
        """Asks it to stop; `wait` makes sure."""
        if self.alive:
            self.process.terminate()

    def wait(self) -> None:
        """Waits for the end; kills what does not stop in time."""
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=1.0)

    def _read(self, stream: IO[str], log_file: Path) -> None:
        """Whatever becomes of a line, the pipe is read: a full one would stop the process."""
        with log_file.open("w", encoding="utf-8") as log:
            for line in stream:
                self.last_lines.append(line.rstrip())
                try:
                    log.write(line)
                    log.flush()
                    self._on_line(self.name, line.rstrip())
                except (OSError, ValueError):
                    pass  # the disk is full, or nobody reads our own output any more

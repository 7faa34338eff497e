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
from typing import IO, Protocol

KEPT_LINES = 30
"""The last lines of output that are kept for error messages."""
STOP_TIMEOUT_S = 10.0
"""How long a process may take to stop before it is killed."""
PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that sets the signal for the parent's death."""


class Process(Protocol):
    """A process that was started, as its launcher sees it; `subprocess.Popen` is one.

    `stdout` has what it writes to its standard output and its standard error. `wait` raises
    subprocess.TimeoutExpired.
    """

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    @property
    def stdout(self) -> IO[str] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


Start = Callable[[Sequence[str]], Process]
"""Starts a command, its path first, in a session of its own."""


def start_program(command: Sequence[str]) -> Process:
    """Starts `command` as a child process, with its standard output and errors in one pipe."""
    # A session of its own: Ctrl-C reaches the launcher alone, which stops all in order.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=prepare_child,
    )


def prepare_child() -> None:
    """Runs in a new child before its program: it can be stopped, and ends with its launcher."""
    # `nohup` and the `&` of a shell start the launcher with signals ignored, which a program would
    # inherit from it.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A process whose output goes to `log_file` and line by line to `on_line`; the last lines are
    kept for errors."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        on_line: Callable[[str, str], None],
        start: Start = start_program,
    ) -> None:
        self.name = name
        self.command = command
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._on_line = on_line
        self.process = start(command)
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

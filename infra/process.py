"""`Child`: a process that is started, whose output is kept, and that is stopped for certain."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

KEPT_LINES = 30
"""The last lines of output that are kept for error messages."""
MAX_UNWRITTEN_LINES = 10_000
"""Lines of output that may wait for a slow disk or a terminal that is held; more are dropped."""
STOP_TIMEOUT_S = 10.0
"""How long a process may take to stop before it is killed."""
OUTPUT_TIMEOUT_S = 1.0
"""How long the last output of a process that has ended is waited for."""
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


class OutputLines:
    """Lines on their way from a thread that must not wait to one that may. If too many are under
    way, new ones are dropped, and a line tells how many these were."""

    def __init__(self, max_lines: int = MAX_UNWRITTEN_LINES) -> None:
        self._max_lines = max_lines
        self._lines: deque[str] = deque()
        self._num_dropped = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, line: str) -> None:
        """Adds a line, or drops it. Never waits for whoever takes lines."""
        with self._changed:
            if len(self._lines) >= self._max_lines:
                self._num_dropped += 1
                return
            if self._num_dropped:
                self._lines.append(f"({self._num_dropped} lines were dropped)\n")
                self._num_dropped = 0
            self._lines.append(line)
            self._changed.notify()

    def close(self) -> None:
        """Says that no more lines will come."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def take(self) -> str | None:
        """Waits for the next line and returns it; None after the last one."""
        with self._changed:
            while not self._lines and not self._is_closed:
                self._changed.wait()
            return self._lines.popleft() if self._lines else None


class Child:
    """A process whose output goes to `log_file` and line by line to `on_line`; the last lines are
    kept for errors. Its output is read whatever becomes of these: a full pipe would stop it."""

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
        self._output = OutputLines()
        self.process = start(command)
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._writer = threading.Thread(target=self._write, args=(log_file,), daemon=True)
        self._reader.start()
        self._writer.start()

    @property
    def alive(self) -> bool:
        """True until the process has ended."""
        return self.process.poll() is None

    def terminate(self) -> None:
        """Asks the process to stop (SIGTERM). Does not wait; `wait` makes sure."""
        if self.alive:
            self.process.terminate()

    def interrupt(self) -> None:
        """Asks the process to stop as Ctrl-C does (SIGINT): a node then finishes nothing first."""
        if self.alive:
            self.process.send_signal(signal.SIGINT)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Waits for the end of the process and of its output; kills it after `timeout_s`."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # The writer ends after the reader, which a child of the process may hold up for longer.
        self._reader.join(OUTPUT_TIMEOUT_S)
        if not self._reader.is_alive():
            self._writer.join(OUTPUT_TIMEOUT_S)

    def _read(self, stream: IO[str]) -> None:
        """Takes the output of the process until its end. Does nothing that may wait or fail."""
        for line in stream:
            self.last_lines.append(line.rstrip())
            self._output.put(line)
        self._output.close()

    def _write(self, log_file: Path) -> None:
        """Passes on the output of the process until its end."""
        log = _open_log(log_file)
        if log is None:
            self._tell(f"{log_file} cannot be written; the output is not kept")
        while (line := self._output.take()) is not None:
            if log is not None:
                try:
                    log.write(line)
                    log.flush()
                except (OSError, ValueError):
                    pass  # the disk is full; there may be room for a later line
            self._tell(line.rstrip())
        if log is not None:
            with suppress(OSError):
                log.close()  # it may have something left to write

    def _tell(self, line: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads our own output any more
            self._on_line(self.name, line)


def _open_log(log_file: Path) -> IO[str] | None:
    """Returns the file, emptied; None if there can be none, as when the disk has no inode left."""
    try:
        return log_file.open("w", encoding="utf-8")
    except OSError:
        return None

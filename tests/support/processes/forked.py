"""Processes of a cluster, forked from one that has already imported what they import.

A node that is started anew spends most of its start on importing torch. A forked one is a process
all the same: it has a pid and a session of its own, signals at their defaults, and a log.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import IO

from infra.cli import main
from infra.process import Process, prepare_child, start_program

PROGRAM = (sys.executable, "-m", "infra.cli")
HELD_S = 3.0
"""For how long `start_holdable`'s processes hold the lock: longer than the lease in tests."""
PRELOADED = [
    "coordinator.http.server",
    "decode.answers",
    "infra.cli",
    "node.build",
    "node.ranks.worker",
    "prefill.handovers",
    "tests.support.processes.forked",
]


def forkserver() -> ForkServerContext:
    """The context of all processes that tests fork: there is one server for them, which imports
    what is named before its first child."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start_forked(command: Sequence[str]) -> Process:
    """Forks what runs `kvrelay`, and starts other commands as the product does."""
    if tuple(command[: len(PROGRAM)]) != PROGRAM:
        return start_program(command)
    return ForkedProcess(command)


def nothing() -> None:
    """Does nothing."""


def start_holdable(command: Sequence[str]) -> Process:
    """Forks as `start_forked` does; SIGUSR1 makes the process hold Python's lock for HELD_S, in
    whatever its main thread is doing."""
    if tuple(command[: len(PROGRAM)]) != PROGRAM:
        return start_program(command)
    return ForkedProcess(command, prepare=_hold_on_signal)


def hold_lock(seconds: float) -> None:
    """Sleeps without giving up Python's lock, so that no other thread of this process runs."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def _hold_on_signal() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: hold_lock(HELD_S))


class ForkedProcess:
    """A `kvrelay` command in a forked process, with what `subprocess.Popen` offers of it."""

    def __init__(
        self,
        command: Sequence[str],
        errors_apart: bool = False,
        prepare: Callable[[], None] = nothing,
    ) -> None:
        """`errors_apart`: its standard error is `stderr`, and not in `stdout`. The process calls
        `prepare` first."""
        self._command = command
        context = forkserver()
        pipes = [context.Pipe(duplex=False) for _ in range(1 + errors_apart)]
        arguments, theirs = list(command[len(PROGRAM) :]), [its_end for _, its_end in pipes]
        self._process: BaseProcess = context.Process(
            target=_run, args=(arguments, dict(os.environ), theirs[0], theirs[-1], prepare)
        )
        self._process.start()
        for its_end in theirs:
            its_end.close()  # so that the end of the process ends the pipe
        self.stdout: IO[str] | None = _text_of(pipes[0][0])
        self.stderr: IO[str] | None = _text_of(pipes[1][0]) if errors_apart else None
        # multiprocessing waits at exit for what still runs, which a failed test may have left.
        atexit.register(self._process.kill)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._command, timeout)
        return self._process.exitcode

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _text_of(pipe: Connection) -> IO[str]:
    with pipe:
        return os.fdopen(os.dup(pipe.fileno()), errors="replace")


def _run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: Connection,
    errors: Connection,
    prepare: Callable[[], None],
) -> None:
    """Makes the forked process what a started one is, and runs the command in it."""
    os.setsid()
    prepare_child()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python has it at its start
    os.dup2(output.fileno(), sys.stdout.fileno())
    os.dup2(errors.fileno(), sys.stderr.fileno())
    output.close()
    errors.close()
    os.environ.clear()
    os.environ.update(environment)
    prepare()
    main(arguments)

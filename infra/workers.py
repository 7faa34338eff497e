"""The parent of several coordinator processes, which are behind one HTTP port.

It forks the workers, starts those again that die, and passes signals on to them. It serves nothing
itself and imports no more than they do, so a worker that starts again is there at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from infra.process import STOP_TIMEOUT_S, prepare_child
from infra.worker_lives import Restarts, worst_status
from protocol.errors import UserError

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REFUSED = 2
"""The exit code of a worker that cannot start and has said why: it is not started again."""
STOP_MARGIN_S = STOP_TIMEOUT_S - 2
"""How much longer than they drain workers may take to stop: less than a launcher gives their
parent."""

Serve = Callable[[int], None]
"""Serves as the worker of a number, until it is told to stop."""


def run_workers(num_workers: int, serve: Serve, drain_timeout_s: float) -> None:
    """Runs `serve(0)`, `serve(1)`, … in a process each, until SIGTERM or SIGINT. A worker that was
    told to stop may go on for `drain_timeout_s`, and a little longer to end.

    Ends as a single process does: by the signal, or by SystemExit with the worst status of a worker
    that did not stop as it was told, or could not start.
    """
    with _caught_signals() as signals:
        number = _WorkerProcesses(num_workers, serve, signals, drain_timeout_s).run()
    signal.raise_signal(number)


@contextmanager
def _caught_signals() -> Iterator[socket.socket]:
    """Catches SIGNALS: the number of each is a byte to be read from the socket that this gives."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    signal.set_wakeup_fd(writer.fileno())
    try:
        with reader, writer:
            yield reader
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)


class _WorkerProcesses:
    """The processes of the workers. `run` starts them and watches over them."""

    def __init__(
        self, num_workers: int, serve: Serve, signals: socket.socket, drain_timeout_s: float
    ) -> None:
        """`signals` gives the number of each signal that comes, as a byte."""
        self._num_workers = num_workers
        self._serve = serve
        self._signals = signals
        self._kill_after_s = drain_timeout_s + STOP_MARGIN_S
        self._restarts: Restarts[int] = Restarts()
        self._processes: dict[int, BaseProcess] = {}

    def run(self) -> int:
        """Returns the number of the signal to stop, when all workers have stopped as told. Raises
        SystemExit if they did not, or one cannot start."""
        for worker in range(self._num_workers):
            self._start(worker)
        while True:
            number = self._wait(self._restarts.wake_in_s(time.monotonic()))
            if number is not None:
                self._stop(number)
                return number
            self._plan_restarts()
            for worker in self._restarts.due(time.monotonic()):
                self._start(worker)

    def _start(self, worker: int) -> None:
        process = get_context("fork").Process(target=_run_worker, args=(self._serve, worker))
        # A signal that came before the child has handlers of its own would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._restarts.started(worker, time.monotonic())
        try:
            process.start()
        except OSError as error:
            wait_s = self._restarts.ended(worker, time.monotonic())
            log.error("worker %d cannot start (%s); again in %.1f s", worker, error, wait_s)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._processes[worker] = process
        log.info("worker %d is process %d", worker, process.pid)

    def _wait(self, timeout_s: float | None) -> int | None:
        """Waits until a worker ends or a signal comes. Returns the number of the signal."""
        sentinels = [process.sentinel for process in self._processes.values()]
        if self._signals not in wait([*sentinels, self._signals], timeout_s):
            return None
        return self._signals.recv(1)[0]

    def _plan_restarts(self) -> None:
        for worker, process in list(self._processes.items()):
            if process.exitcode is None:
                continue
            del self._processes[worker]
            if process.exitcode == REFUSED:
                with suppress(SystemExit):  # others may have been refused for the same reason
                    self._stop(signal.SIGTERM)
                sys.exit(1)
            wait_s = self._restarts.ended(worker, time.monotonic())
            log.error(
                "worker %d ended (exit code %d); it starts again in %.1f s",
                worker,
                process.exitcode,
                wait_s,
            )

    def _stop(self, number: int) -> None:
        """Passes a signal on, and those that come after it, until all workers have ended. Raises
        SystemExit with the worst status."""
        kill_at = time.monotonic() + self._kill_after_s
        exit_codes: list[int] = []
        self._send(number)
        while self._processes:
            again = self._wait(max(0.0, kill_at - time.monotonic()))
            if again is not None:
                self._send(again)
            if time.monotonic() >= kill_at:
                self._send(signal.SIGKILL)
            for worker, process in list(self._processes.items()):
                if process.exitcode is not None:
                    exit_codes.append(process.exitcode)
                    del self._processes[worker]
        if status := worst_status(exit_codes):
            sys.exit(status)

    def _send(self, number: int) -> None:
        for process in self._processes.values():
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, number)


def _run_worker(serve: Serve, worker: int) -> None:
    """Makes a forked process what a started one is, and serves in it."""
    signal.set_wakeup_fd(-1)
    os.setsid()  # Ctrl-C reaches the parent alone, which passes it on
    prepare_child()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        serve(worker)
    except UserError as error:
        print(f"kvrelay: {error}", file=sys.stderr)
        sys.exit(REFUSED)

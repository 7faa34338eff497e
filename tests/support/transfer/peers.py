"""Peers in processes of their own, which tests kill and stop, and what others do meanwhile."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from kvtransfer.links.socket_store import SocketStore
from kvtransfer.transport import LinkStats
from node.liveness.process import CompanionProcess
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout
from tests.support.processes.forked import forkserver, hold_lock
from tests.support.transfer.endpoints import DEADLINE_S, LAYOUT, Endpoint, attempt, new_backend

BIG = list(range(64))
LARGE = KVLayout(page_size=64, num_layers=8, num_kv_heads=8, head_dim=64, dtype="float32")
"""A page of 2 MiB."""


class Victim:
    """An endpoint in a process of its own, to be killed."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        assert pipe.poll(60.0), "the peer process did not start"
        self._process = process
        self._pipe = pipe
        self.address: str = pipe.recv()

    def send(self, to: str, transfer: Attempt, pages: list[int]) -> None:
        """Tells it to send."""
        self._pipe.send((to, transfer, pages))

    def await_sent(self) -> str:
        """The end of its next send that has not been awaited."""
        self._pipe.send(None)
        assert self._pipe.poll(DEADLINE_S), "no send ended"
        return str(self._pipe.recv())

    def hold_lock(self, seconds: float) -> None:
        """Makes one of its threads hold Python's lock, so that all others wait for it. Returns when
        that has begun."""
        self._pipe.send(seconds)
        self.await_held()

    def hold_lock_in_next_pair(self, seconds: float) -> None:
        """Makes the next link's thread hold Python's lock when it has told its peer where to find
        it, in the middle of making a pair. `await_held` waits for that."""
        self._pipe.send(("hold", seconds))

    def await_held(self) -> None:
        """Waits until the lock is held."""
        assert self._pipe.poll(DEADLINE_S) and self._pipe.recv() == "held"

    def await_release(self) -> None:
        """Waits until its threads run again."""
        assert self._pipe.poll(DEADLINE_S) and self._pipe.recv() == "released"

    def stop(self) -> None:
        """As if it were cut off: its sockets stay open and nothing comes out of them."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@dataclass(frozen=True)
class Elsewhere:
    """Another network namespace: its file, and the victim's address there."""

    file: str
    host: str


@contextmanager
def victim_process(
    backend_name: str,
    port: int = 0,
    layout: KVLayout = LAYOUT,
    elsewhere: Elsewhere | None = None,
    stall_s: float | None = None,
) -> Iterator[Victim]:
    """With `stall_s` the victim has a companion, which says that it lives, unless its main loop
    does not come round for so long."""
    context = forkserver()
    here, there = context.Pipe()
    process = context.Process(
        target=_serve_until_killed,
        args=(there, backend_name, port, layout, elsewhere, stall_s),
        daemon=True,
    )
    process.start()
    there.close()  # so that the end of the process ends the pipe
    try:
        yield Victim(process, here)
    finally:
        process.kill()
        process.join()


def _serve_until_killed(
    report: Connection,
    backend_name: str,
    port: int,
    layout: KVLayout,
    elsewhere: Elsewhere | None,
    stall_s: float | None,
) -> None:
    host = "127.0.0.1"
    if elsewhere is not None:
        host = elsewhere.host
        with open(elsewhere.file, encoding="ascii") as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) == 0
    backend = new_backend(backend_name, host)
    health_address = "" if stall_s is None else _start_companion(stall_s)
    endpoint = Endpoint(
        "victim", backend, layout=layout, port=port, host=host, health_address=health_address
    )
    report.send(endpoint.address)
    while True:
        order = report.recv()
        if order is None:
            report.send(endpoint.await_sent()[1])
        elif isinstance(order, float):
            report.send("held")
            hold_lock(order)
            report.send("released")
        elif order[0] == "hold":
            _hold_after_next_set(report, order[1])
        else:
            endpoint.send(*order)


def _hold_after_next_set(report: Connection, seconds: float) -> None:
    """Has the next store of a pair hold the lock when it has told its first value."""
    usual = SocketStore.set

    def set_and_hold(store: SocketStore, key: str, value: bytes | str) -> None:
        SocketStore.set = usual  # type: ignore[method-assign]
        usual(store, key, value)
        report.send("held")
        hold_lock(seconds)
        report.send("released")

    SocketStore.set = set_and_hold  # type: ignore[method-assign]


def _start_companion(stall_s: float) -> str:
    """Starts a companion whose node came round just now; returns where it answers."""
    companion = CompanionProcess(
        Node("victim", 1), "127.0.0.1", 0, "redis://127.0.0.1:1/0", 1000.0, stall_s
    )
    companion.board.stamp(time.monotonic_ns())
    return f"127.0.0.1:{companion.health_port}"


def exchange(a: Endpoint, b: Endpoint, number: int) -> None:
    """Both ways, and both arrive."""
    for sender, receiver in ((a, b), (b, a)):
        receiver.expect(attempt(number), [7])
        sender.send(receiver.address, attempt(number), [7])
        assert receiver.await_received() == (attempt(number), "")
        assert sender.await_sent() == (attempt(number), "")


def await_lost_links(survivor: Endpoint, peer: str) -> None:
    """Until no link to or from this peer is open, and its loss is counted."""
    pause = threading.Event()

    def is_lost(link: LinkStats) -> bool:
        return not link.is_open and link.failures > 0

    for _ in range(int(DEADLINE_S / 0.05)):
        links = [link for link in survivor.transport.links() if link.peer == peer]
        if len(links) == 2 and all(map(is_lost, links)):
            return
        pause.wait(0.05)
    raise AssertionError(f"still open: {survivor.transport.links()}")

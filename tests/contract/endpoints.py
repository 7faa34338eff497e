"""A transport with its pool, as the transport tests drive it, in this process or in another."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from kvtransfer.gloo import GlooBackend
from kvtransfer.local import LocalBackend
from kvtransfer.nccl import NcclBackend
from kvtransfer.pair import PairBackend
from kvtransfer.pair_transport import PairTransport
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout

LAYOUT = KVLayout(page_size=4, num_layers=3, num_kv_heads=2, head_dim=8, dtype="float32")
NUM_PAGES = 64
DEADLINE_S = 20.0
TIMEOUT_S = 2.0


def attempt(number: int = 1, name: str = "r") -> Attempt:
    return Attempt(name, number)


def new_backend(name: str) -> PairBackend:
    """`name`: local, gloo, or nccl:N for the backend of GPU N."""
    torch.set_num_threads(1)
    if name == "local":
        return LocalBackend(TIMEOUT_S)
    if name.startswith("nccl"):
        return NcclBackend(torch.device(name.replace("nccl", "cuda")), TIMEOUT_S)
    return GlooBackend("127.0.0.1", TIMEOUT_S)


class Endpoint:
    """A transport with its pool (on the backend's device), and what its callbacks said."""

    def __init__(
        self,
        name: str,
        backend: PairBackend,
        layout: KVLayout = LAYOUT,
        fingerprint: str = "model",
        num_pages: int = NUM_PAGES,
        incarnation: int = 1,
    ) -> None:
        self.pool = torch.randn(
            layout.num_layers,
            num_pages,
            2,
            layout.page_size,
            layout.num_kv_heads,
            layout.head_dim,
            device=backend.staging_device,
        )
        self.transport = PairTransport(
            self.pool,
            layout,
            Node(name, incarnation),
            fingerprint,
            backend,
            with_checksum=True,
        )
        self.received: queue.Queue[tuple[Attempt, str]] = queue.Queue()
        self.sent: queue.Queue[tuple[Attempt, str]] = queue.Queue()

    @property
    def address(self) -> str:
        return self.transport.address

    def expect(self, transfer: Attempt, pages: list[int]) -> None:
        self.transport.expect(transfer, pages, lambda e: self.received.put((transfer, e)))

    def send(self, to: str, transfer: Attempt, pages: list[int], offset: int = 0) -> None:
        self.transport.send(to, transfer, pages, offset, lambda e: self.sent.put((transfer, e)))

    def await_received(self) -> tuple[Attempt, str]:
        return self.received.get(timeout=DEADLINE_S)

    def await_sent(self) -> tuple[Attempt, str]:
        return self.sent.get(timeout=DEADLINE_S)


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

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def victim_process(backend_name: str) -> Iterator[Victim]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_until_killed, args=(there, backend_name), daemon=True)
    process.start()
    try:
        yield Victim(process, here)
    finally:
        process.kill()
        process.join()


def _serve_until_killed(report: Connection, backend_name: str) -> None:
    endpoint = Endpoint("victim", new_backend(backend_name))
    report.send(endpoint.address)
    while True:
        to, transfer, pages = report.recv()
        endpoint.send(to, transfer, pages)

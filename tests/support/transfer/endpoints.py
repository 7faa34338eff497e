"""A transport with its pool, as the transport tests drive it, in this process or in another."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from kvtransfer.backends.gloo import GlooBackend
from kvtransfer.backends.local import LocalBackend
from kvtransfer.backends.nccl import NcclBackend
from kvtransfer.backends.pair import PairBackend
from kvtransfer.backends.shared_memory import SharedMemoryBackend
from kvtransfer.backends.tcp import TcpBackend
from kvtransfer.links.handshake import Place
from kvtransfer.pages.layout import WHOLE, Shard
from kvtransfer.pair_transport import PairTransport
from kvtransfer.place import place_of
from kvtransfer.transport import OnDone, PageStream
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout

LAYOUT = KVLayout(page_size=4, num_layers=3, num_kv_heads=2, head_dim=8, dtype="float32")
NUM_PAGES = 64
DEADLINE_S = 20.0
TIMEOUT_S = 2.0


NCCL = pytest.param(
    "nccl",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices"),
    ],
)


def attempt(number: int = 1, name: str = "r") -> Attempt:
    return Attempt(name, number)


def new_backend(name: str, host: str = "127.0.0.1") -> PairBackend:
    """`name`: local, shm, gloo, or nccl:N for the backend of GPU N. `host`: its own address."""
    torch.set_num_threads(1)
    if name == "local":
        return LocalBackend(TIMEOUT_S)
    if name == "tcp":
        return TcpBackend(TIMEOUT_S)
    if name == "shm":
        return SharedMemoryBackend(TIMEOUT_S)
    if name.startswith("nccl"):
        return NcclBackend(torch.device(name.replace("nccl", "cuda")), TIMEOUT_S)
    return GlooBackend(host, TIMEOUT_S)


def random_pool(layout: KVLayout, num_heads: int, num_pages: int, device: torch.device) -> Tensor:
    """A pool with `num_heads` KV heads of `layout`; where pages have scales, [layers, pages,
    bytes]."""
    if layout.scales:
        page_bytes = layout.layer_page_bytes * num_heads // layout.num_kv_heads
        shape: tuple[int, ...] = (layout.num_layers, num_pages, page_bytes)
        return torch.randint(256, shape, dtype=torch.uint8, device=device)
    shape = (layout.num_layers, num_pages, 2, layout.page_size, num_heads, layout.head_dim)
    return torch.randn(shape, device=device).to(getattr(torch, layout.dtype))


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
        shard: Shard = WHOLE,
        others: Sequence[PairBackend] = (),
        place: Place | None = None,
        min_send_bytes: int = 0,
        idle_close_s: float = 300.0,
        port: int = 0,
        host: str = "127.0.0.1",
        health_address: str = "",
    ) -> None:
        """`others`: backends that it can use as well, less well."""
        device = backend.staging_device
        self.pool = random_pool(layout, len(shard.heads(layout.num_kv_heads)), num_pages, device)
        self.transport = PairTransport(
            self.pool,
            layout,
            Node(name, incarnation),
            fingerprint,
            [backend, *others],
            place or place_of(device),
            shard,
            host=host,
            port=port,
            with_checksums=True,
            min_send_bytes=min_send_bytes,
            idle_close_s=idle_close_s,
            health_address=health_address,
        )
        self.backends = [backend, *others]
        self.progress: queue.Queue[tuple[Attempt, int]] = queue.Queue()
        self.received: queue.Queue[tuple[Attempt, str]] = queue.Queue()
        self.sent: queue.Queue[tuple[Attempt, str]] = queue.Queue()

    @property
    def address(self) -> str:
        return self.transport.address

    def expect(self, transfer: Attempt, pages: list[int]) -> None:
        self.transport.expect(
            transfer,
            pages,
            lambda num_pages: self.progress.put((transfer, num_pages)),
            lambda error: self.received.put((transfer, error)),
        )

    def send(
        self, to: str | Sequence[str], transfer: Attempt, pages: list[int], offset: int = 0
    ) -> None:
        self.transport.send(_ranks(to), transfer, pages, offset, self._on_sent(transfer))

    def stream(
        self, to: str | Sequence[str], transfer: Attempt, pages: list[int], offset: int = 0
    ) -> PageStream:
        return self.transport.stream(_ranks(to), transfer, pages, offset, self._on_sent(transfer))

    def await_progress(self) -> tuple[Attempt, int]:
        return self.progress.get(timeout=DEADLINE_S)

    def await_received(self) -> tuple[Attempt, str]:
        return self.received.get(timeout=DEADLINE_S)

    def await_sent(self) -> tuple[Attempt, str]:
        return self.sent.get(timeout=DEADLINE_S)

    def _on_sent(self, transfer: Attempt) -> OnDone:
        return lambda error: self.sent.put((transfer, error))


def _ranks(to: str | Sequence[str]) -> Sequence[str]:
    return [to] if isinstance(to, str) else to


def same(a: Tensor, b: Tensor) -> bool:
    """Wherever they are."""
    return torch.equal(a.cpu(), b.cpu())


def until(condition: Callable[[], object], what: str) -> None:
    """Polls until `condition()` is true."""
    pause, deadline = threading.Event(), time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S:g} s"
        pause.wait(0.01)


def move_until_it_arrives(a: Endpoint, b: Endpoint, pages: list[int], first_number: int) -> None:
    """From a to b, into the same pages. A link may have to notice that it is broken; over NCCL a
    short send even succeeds until then."""
    for number in range(first_number, first_number + 20):
        transfer = attempt(number)
        b.expect(transfer, pages)
        a.send(b.address, transfer, pages)
        while (sent := a.await_sent())[0] != transfer:
            pass  # an end of what went before
        if sent[1] == "":
            with suppress(queue.Empty):
                if b.received.get(timeout=3.0) == (transfer, ""):
                    return
        b.transport.abort(transfer)
    raise AssertionError("nothing arrives")


Make = Callable[..., Endpoint]
"""By name; the keywords are `Endpoint`'s, `faults`, and `gpu`; the backend is the fixture's."""

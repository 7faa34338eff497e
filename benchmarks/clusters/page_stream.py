"""Measures pages that go from one process to another, against raw sends of as many bytes.

Physics: a page of a transfer is copied out of the sender's pool, moved, and copied into the
receiver's. A raw send moves one contiguous buffer, with the backend's best message size and no
copy. So on a CPU the two copies share the memory bandwidth and the cores with the move itself; on
GPUs they run beside it. What is measured is goodput: the bytes of the pages over the time from
`send` until the sending process has been told that all of them are there.

The CPU time of a transfer is that of all threads of each process, the copies of pages among it.
"""

from __future__ import annotations

import multiprocessing
import queue
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch.distributed import PrefixStore, TCPStore

from kvtransfer.backends.choice import make_backends
from kvtransfer.backends.pair import RECEIVER_RANK, SENDER_RANK, Pair, PairBackend
from kvtransfer.links.handshake import nobody_knows
from kvtransfer.pair_transport import PairTransport
from kvtransfer.place import place_of
from protocol.ids import Attempt, Node
from protocol.layout import FP8, KVLayout

SHAPES = {
    "llama-3-8b": KVLayout(16, 32, 8, 128, "bfloat16"),
    "llama-3-8b, pages of 64": KVLayout(64, 32, 8, 128, "bfloat16"),
    "llama-3-8b, FP8 pages": KVLayout(16, 32, 8, 128, FP8, "token"),
    "embedded model": KVLayout(16, 6, 2, 32, "float32"),
}
NUM_PAGES = (1, 8, 32, 256, 512, 1024)
"""512 and 4,096 tokens are 32 and 256 pages of 16; more than MAX_BYTES is left out."""
RAW_MESSAGES = {
    "gloo": ((1 << 20, 8), (16 << 20, 1)),
    "nccl": ((16 << 20, 4), (64 << 20, 2), (256 << 20, 1)),
}
"""The ways to send raw, as (bytes of a message, messages under way at once). The fastest counts."""
POOL_BYTES = 3 << 30
MAX_BYTES = 1 << 30
REPEATS = 7
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Stream:
    """One row of the table."""

    transport: str
    shape: str
    num_pages: int
    scattered: bool
    """True if the pages lie in random order in the pool, False if one after the other."""
    first_s: float
    """Seconds that the process's very first page took, over a link that had to be made first."""
    rate: float
    """Bytes of pages per second."""
    raw_rate: float
    """Bytes per second of raw sends of the same size."""
    sender_cpu_s: float
    receiver_cpu_s: float
    """Mean CPU seconds of one transfer in each process."""

    @property
    def vs_raw(self) -> float:
        """The rate of pages as a share of the rate of raw sends."""
        return self.rate / self.raw_rate


def measure(
    transport: str, shape: str, num_pages: Sequence[int] = NUM_PAGES, repeats: int = REPEATS
) -> list[Stream]:
    """Returns the rows of one transport (shm, gloo, or nccl, which needs two GPUs) and one shape of
    pages. Transfers of more than MAX_BYTES are left out."""
    layout = SHAPES[shape]
    with _Peer(transport, layout) as peer:
        rows, first_s = [], peer.stream_s(1)
        for count in num_pages:
            if count * layout.page_bytes > MAX_BYTES:
                continue
            raw_rate = peer.raw_rate(count * layout.page_bytes, repeats)
            for scattered in (False, True):
                rate, cpu_s = peer.stream_rate(count, scattered, repeats)
                rows.append(
                    Stream(transport, shape, count, scattered, first_s, rate, raw_rate, *cpu_s)
                )
        return rows


def pages_of(count: int, num_pool_pages: int, scattered: bool) -> list[int]:
    """Returns `count` pages of a pool: the first ones in order, or scattered ones."""
    pages = list(range(num_pool_pages))
    if scattered:
        random.Random(7).shuffle(pages)
    return pages[:count]


class _Peer:
    """The receiving process, which this one drives over a pipe while it sends."""

    def __init__(self, transport: str, layout: KVLayout) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._process = context.Process(
            target=_serve, args=(there, transport, layout, self._store.port), daemon=True
        )
        self._process.start()
        there.close()
        self._layout = layout
        self._side = _Side(transport, layout, SENDER_RANK, self._store)
        self._address = self._answer()
        self._num_sent = 0

    def __enter__(self) -> _Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._side.close()
        self._process.kill()
        self._process.join()

    def stream_s(self, count: int, scattered: bool = False) -> float:
        """Sends `count` pages and returns the seconds until the news that all are there."""
        pages = pages_of(count, self._side.num_pages, scattered)
        self._num_sent += 1
        transfer = Attempt("bench", self._num_sent)
        self._pipe.send(("expect", transfer, list(reversed(pages))))
        self._answer()
        started = time.perf_counter()
        self._side.send(self._address, transfer, pages)
        self._answer()
        return time.perf_counter() - started

    def stream_rate(
        self, count: int, scattered: bool, repeats: int
    ) -> tuple[float, tuple[float, float]]:
        """Returns the median rate, in bytes per second, of several transfers after a first one, and
        the mean CPU seconds of one in the sending and the receiving process."""
        self.stream_s(count, scattered)
        before = self._cpu_s()
        seconds = [self.stream_s(count, scattered) for _ in range(repeats)]
        sender_s, receiver_s = (
            (now - then) / repeats for then, now in zip(before, self._cpu_s(), strict=True)
        )
        rate = count * self._layout.page_bytes / statistics.median(seconds)
        return rate, (sender_s, receiver_s)

    def _cpu_s(self) -> tuple[float, float]:
        """Returns the CPU seconds that the two processes have used."""
        self._pipe.send(("cpu",))
        return time.process_time(), float(self._answer())

    def raw_rate(self, num_bytes: int, repeats: int) -> float:
        """Returns the rate, in bytes per second, of the fastest way to send `num_bytes` raw."""
        return max(
            self._raw_rate(num_bytes, way, repeats) for way in range(self._side.num_raw_ways)
        )

    def _raw_rate(self, num_bytes: int, way: int, repeats: int) -> float:
        """Returns the median rate of raw sends in one of the ways, after a first one that makes the
        pair."""
        seconds = []
        for _ in range(repeats + 1):
            self._pipe.send(("raw", num_bytes, way))
            self._answer()
            started = time.perf_counter()
            self._side.raw(num_bytes, way)
            self._answer()
            seconds.append(time.perf_counter() - started)
        return num_bytes / statistics.median(seconds[1:])

    def _answer(self) -> Any:
        assert self._pipe.poll(DEADLINE_S), "the other process does not answer"
        return self._pipe.recv()


class _Side:
    """What each of the two processes has: a transport with a pool, and raw pairs beside it."""

    def __init__(self, transport: str, layout: KVLayout, rank: int, store: TCPStore) -> None:
        torch.set_num_threads(1)
        device = torch.device(f"cuda:{rank}" if transport == "nccl" else "cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.num_pages = min(2048, POOL_BYTES // layout.page_bytes)
        shape = (layout.num_layers, self.num_pages, layout.layer_page_bytes)
        self.pool = torch.zeros(shape, dtype=torch.uint8, device=device)
        backend = _backend(transport, device)
        place = place_of(device)
        node = Node(f"n{rank}", 1)
        self._transport = PairTransport(self.pool, layout, node, "model", [backend], place)
        self.address = self._transport.address
        self._rank = rank
        raw = "nccl" if transport == "nccl" else "gloo"
        self._raw = [
            _RawPair(raw, device, rank, store, way) for way in range(len(RAW_MESSAGES[raw]))
        ]

    @property
    def num_raw_ways(self) -> int:
        return len(self._raw)

    def send(self, address: str, transfer: Attempt, pages: list[int]) -> None:
        self._transport.send([address], transfer, pages, 0, lambda error: None)

    def expect(self, transfer: Attempt, pages: list[int]) -> queue.SimpleQueue[str]:
        done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._transport.expect(transfer, pages, lambda num_pages: None, done.put)
        return done

    def raw(self, num_bytes: int, way: int) -> None:
        self._raw[way].move(num_bytes)

    def close(self) -> None:
        self._transport.close()


class _RawPair:
    """Moves bytes that nobody fills or reads. The pair is made on first use, which both sides reach
    at the same time."""

    def __init__(
        self, transport: str, device: torch.device, rank: int, store: TCPStore, way: int
    ) -> None:
        self._message_bytes, self._window = RAW_MESSAGES[transport][way]
        self._backend = _backend(transport, device)
        self._store = PrefixStore(f"raw/{way}", store)
        self._rank = rank
        self._pair: Pair | None = None

    def move(self, num_bytes: int) -> None:
        """Sends or receives `num_bytes`, with as many messages under way as the window allows. The
        other side must do the same at the same time."""
        if self._pair is None:
            self._pair = self._backend.make_pair(
                self._store, self._rank, self._window, self._message_bytes, nobody_knows
            )
        under_way = 0
        for start in range(0, num_bytes, self._message_bytes):
            if under_way == self._window:
                self._wait(self._pair)
                under_way -= 1
            self._start(self._pair, min(self._message_bytes, num_bytes - start))
            under_way += 1
        for _ in range(under_way):
            self._wait(self._pair)

    def _start(self, pair: Pair, num_bytes: int) -> None:
        """Begins to send or receive one message, as this side's rank says."""
        if self._rank == SENDER_RANK:
            pair.reserve(num_bytes)
            pair.send()
        else:
            pair.post(num_bytes)

    def _wait(self, pair: Pair) -> None:
        """Waits for the end of the oldest message."""
        if self._rank == SENDER_RANK:
            pair.sent()
        else:
            pair.received()


def _backend(transport: str, device: torch.device) -> PairBackend:
    (backend,) = make_backends(transport, "127.0.0.1", device)
    return backend


def _serve(pipe: Connection, transport: str, layout: KVLayout, store_port: int) -> None:
    """Is the main function of the receiving process: does what is asked over the pipe, for ever."""
    store = TCPStore("127.0.0.1", store_port, is_master=False)
    side = _Side(transport, layout, RECEIVER_RANK, store)
    pipe.send(side.address)
    while True:
        question, *rest = pipe.recv()
        if question == "cpu":
            pipe.send(time.process_time())
        elif question == "expect":
            done = side.expect(*rest)
            pipe.send("ready")
            pipe.send(done.get(timeout=DEADLINE_S))
        else:
            pipe.send("ready")
            side.raw(*rest)
            pipe.send("done")


def table(streams: Sequence[Stream]) -> Table:
    """Returns the rows as a table for people."""
    table = Table(title="pages against raw sends", box=box.SIMPLE)
    for heading in (
        "transport",
        "shape",
        "pages",
        "",
        "GB/s",
        "raw GB/s",
        "ratio",
        "first ms",
        "CPU ms",
    ):
        table.add_column(heading, justify="right")
    for row in streams:
        table.add_row(
            row.transport,
            row.shape,
            str(row.num_pages),
            "scattered" if row.scattered else "contiguous",
            f"{row.rate / 1e9:.2f}",
            f"{row.raw_rate / 1e9:.2f}",
            f"{row.vs_raw:.2f}",
            f"{row.first_s * 1e3:.0f}",
            f"{row.sender_cpu_s * 1e3:.2f} + {row.receiver_cpu_s * 1e3:.2f}",
        )
    return table

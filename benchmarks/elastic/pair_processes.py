"""`Member`: a process with a transport and a pool, driven over a pipe, for measuring pairs."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.elastic.memory import MEBIBYTE
from benchmarks.memory import resident_bytes_of
from kvtransfer.backends.choice import make_backends
from kvtransfer.pair_transport import PairTransport
from kvtransfer.place import place_of
from protocol.ids import Attempt, Node
from protocol.layout import KVLayout

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0
POLL_S = 0.005


@dataclass(frozen=True)
class MemberPlan:
    """What a member process is."""

    name: str
    backend: str
    device: str
    layout: KVLayout
    num_pages: int
    """Of its pool; a transfer moves all of them."""
    idle_close_s: float
    environment: Mapping[str, str]
    """Variables that are set before anything uses the GPU."""


@dataclass(frozen=True)
class Holding:
    """What a member holds at a moment."""

    memory_mib: float
    """All memory in use of its GPU, or its resident memory."""
    buffers_mib: float
    """What torch has of that GPU, with staging buffers that may be used again; 0 on a CPU."""
    num_files: int
    """Open files and sockets."""
    open_links: tuple[tuple[str, str], ...]
    """Peer and direction of each open link."""


class Member:
    """The process, as its driver sees it."""

    def __init__(self, plan: MemberPlan) -> None:
        """Starts it; `await_ready` must be called before anything is asked."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.name = plan.name
        self.address = ""
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, plan), daemon=True)
        self._process.start()
        there.close()

    def await_ready(self) -> None:
        """Waits until it listens."""
        self.address = self._answer(START_TIMEOUT_S)

    def open(self, peer: Member) -> float:
        """Has it make a pair to send to `peer`. Returns the seconds that took."""
        return float(self._ask("open", peer.name, peer.address))

    def send(self, peer: Member) -> float:
        """Has it send all pages to `peer`. Returns the seconds until all were there."""
        number = time.monotonic_ns()
        peer._ask("expect", number)
        started = time.perf_counter()
        self._ask("send", peer.address, number)
        peer._ask("await", number)
        return time.perf_counter() - started

    def send_on(self, peer: Member, times: int) -> None:
        """Has it begin to send all pages to `peer` so many times. Waits for none of them."""
        for number in range(times):
            peer._ask("expect", number)
        for number in range(times):
            self._ask("send", peer.address, number)

    def holding(self) -> Holding:
        """Returns what it holds now."""
        holding: Holding = self._ask("holding")
        return holding

    def kill(self) -> None:
        """Ends it as SIGKILL does."""
        self._process.kill()
        self._process.join()

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._answer(ANSWER_TIMEOUT_S)

    def _answer(self, timeout_s: float) -> Any:
        assert self._pipe.poll(timeout_s), f"{self.name} does not answer"
        return self._pipe.recv()


class _Side:
    """What a member process has."""

    def __init__(self, plan: MemberPlan) -> None:
        torch.set_num_threads(1)
        self._device = torch.device(plan.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        self._pages = list(range(plan.num_pages))
        layout = plan.layout
        shape = (layout.num_layers, plan.num_pages, layout.layer_page_bytes)
        self._transport = PairTransport(
            torch.zeros(shape, dtype=torch.uint8, device=self._device),
            layout,
            Node(plan.name, 1),
            "model",
            make_backends(plan.backend, "127.0.0.1", self._device),
            place_of(self._device),
            idle_close_s=plan.idle_close_s,
        )
        self.address = self._transport.address
        self._expected: dict[int, queue.SimpleQueue[str]] = {}

    def open(self, peer: str, address: str) -> float:
        started = time.perf_counter()
        self._transport.send([address], Attempt("meeting", 1), [], 0, lambda _: None)
        while not self._is_open(peer):
            assert time.perf_counter() < started + ANSWER_TIMEOUT_S, f"no link to {peer}"
            time.sleep(POLL_S)
        return time.perf_counter() - started

    def send(self, address: str, number: int) -> None:
        transfer = Attempt("bench", number)
        self._transport.send([address], transfer, self._pages, 0, lambda _: None)

    def expect(self, number: int) -> None:
        done = self._expected[number] = queue.SimpleQueue()
        transfer = Attempt("bench", number)
        self._transport.expect(transfer, self._pages, lambda _: None, done.put)

    def await_(self, number: int) -> None:
        error = self._expected.pop(number).get(timeout=ANSWER_TIMEOUT_S)
        assert not error, f"a transfer failed: {error}"

    def holding(self) -> Holding:
        used, reserved = resident_bytes_of(os.getpid()), 0
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            used, reserved = total - free, torch.cuda.memory_reserved(self._device)
        links = tuple((o.peer, o.direction) for o in self._transport.links() if o.is_open)
        return Holding(
            used / MEBIBYTE, reserved / MEBIBYTE, len(os.listdir("/proc/self/fd")), links
        )

    def _is_open(self, peer: str) -> bool:
        links = self._transport.links()
        return any(o.is_open and (o.peer, o.direction) == (peer, "out") for o in links)


def _serve(pipe: Connection, plan: MemberPlan) -> None:
    """Is the main function of a member: does what is asked over the pipe, until that ends."""
    os.environ.update(plan.environment)  # NCCL reads it when the first pair is made
    side = _Side(plan)
    answers: dict[str, Callable[..., Any]] = {
        "open": side.open,
        "send": side.send,
        "expect": side.expect,
        "await": side.await_,
        "holding": side.holding,
    }
    pipe.send(side.address)
    while True:
        try:
            question, *rest = pipe.recv()
        except EOFError:
            return
        pipe.send(answers[question](*rest))

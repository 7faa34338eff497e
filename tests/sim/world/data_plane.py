"""KV pages between simulated nodes: a `Transport` whose links can be cut and whose peers can die.

A page is read from the sender's pool when it is delivered, and compared with what it was when it
could first travel; so a page that changes while it is sent is found. Pages that a step fills travel
when that step is over. A page is written only where the receiver still expects it, as a real
transport promises.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtransfer.transport import LinkStats, OnDone, OnProgress
from protocol.ids import Attempt
from tests.sim.checks import Wrong
from tests.sim.world.clock import VirtualClock
from tests.sim.world.device import SimDevice
from tests.sim.world.network import Network
from tests.sim.world.oracle import KV

PAGE_S = 0.0003
LOSS_NOTICED_S = 2.0
"""A peer that says nothing is given up after so long, as `kvtransfer` does."""


@dataclass(eq=False)
class _ExpectedPages:
    pages: Sequence[int]
    on_progress: OnProgress
    on_done: OnDone
    arrived: set[int] = field(default_factory=set)
    num_told: int = 0
    senders: set[str] = field(default_factory=set)
    """Names of nodes whose links brought a part."""


@dataclass(eq=False)
class SimSend:
    """One `send` or `stream`; it is the `PageStream` that the shell feeds."""

    sender: SimTransport
    peer: str
    transfer: Attempt
    pages: Sequence[int]
    offset: int
    on_done: OnDone
    is_ready: bool
    snapshot: list[list[KV]] | None = None
    num_delivered: int = 0
    is_over: bool = False

    def layers_ready(self, num_layers: int) -> None:
        pass  # pages travel whole here

    def finish(self) -> None:
        self.is_ready = True
        self.sender.streamed.append(self)


class DataPlane:
    """Moves pages over all links between all nodes."""

    def __init__(self, clock: VirtualClock, chance: random.Random, network: Network) -> None:
        self.clock = clock
        self.chance = chance
        self.network = network
        self.transports: dict[str, SimTransport] = {}
        self.num_pages_moved = 0

    def lost(self, name: str, address: str) -> None:
        """Tells whoever was sending to a process or receiving from it, soon, that it has died."""
        self.transports.pop(address, None)
        for other in list(self.transports.values()):
            delay_s = self.chance.choice((0.01, 0.05, LOSS_NOTICED_S))
            self.clock.after(delay_s, other.peer_lost, name, address)


class SimTransport:
    """The transport of one incarnation of a node."""

    def __init__(self, plane: DataPlane, name: str, address: str, device: SimDevice) -> None:
        self.address = address
        self.name = name
        self._plane = plane
        self._device = device
        self._expected: dict[Attempt, _ExpectedPages] = {}
        self._sends: list[SimSend] = []
        self.streamed: list[SimSend] = []
        """Those whose pages the step that is going on has filled when it is over."""
        self.is_closed = False
        plane.transports[address] = self

    @property
    def num_expected(self) -> int:
        return len(self._expected)

    @property
    def num_sends(self) -> int:
        return len(self._sends)

    @property
    def pages_being_sent(self) -> set[int]:
        return {page for send in self._sends for page in send.pages}

    # What a shell calls

    def expect(
        self, transfer: Attempt, pages: Sequence[int], on_progress: OnProgress, on_done: OnDone
    ) -> None:
        if self.pages_being_sent.intersection(pages):
            raise Wrong("pages are expected that are being sent")
        for other in self._expected.values():
            if set(other.pages).intersection(pages):
                raise Wrong("pages are expected by two transfers")
        self._expected[transfer] = _ExpectedPages(list(pages), on_progress, on_done)

    def abort(self, transfer: Attempt) -> None:
        self._expected.pop(transfer, None)

    def send(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> None:
        snapshot = self._contents(pages)
        send = SimSend(self, peer[0], transfer, list(pages), offset, on_done, True, snapshot)
        self._sends.append(send)
        self.pump(send)

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> SimSend:
        send = SimSend(self, peer[0], transfer, list(pages), offset, on_done, False)
        self._sends.append(send)
        return send

    def cancel(self, transfer: Attempt) -> None:
        for send in [s for s in self._sends if s.transfer == transfer]:
            if send.num_delivered == 0:
                self._end(send, "cancelled")

    def links(self) -> list[LinkStats]:
        return []

    def close(self) -> None:
        self.is_closed = True

    # What happens to it

    def step_over(self) -> None:
        """Lets the pages travel that a step has filled."""
        for send in self.streamed:
            send.snapshot = self._contents(send.pages)
            self.pump(send)
        self.streamed.clear()

    def pump(self, send: SimSend) -> None:
        """Lets the next pages of a send travel."""
        plane = self._plane
        peer = plane.transports.get(send.peer)
        delay_s = PAGE_S * len(send.pages)
        if peer is not None:
            delay_s += plane.network.delay_s(self.name, peer.name)
        plane.clock.after(delay_s, self._deliver, send)

    def peer_lost(self, name: str, address: str) -> None:
        if self.is_closed:
            return
        for send in [s for s in self._sends if s.peer == address and s.is_ready]:
            self._end(send, f"{name} was lost")
        for transfer, expected in list(self._expected.items()):
            if address in expected.senders:
                del self._expected[transfer]
                expected.on_done(f"{name} was lost")

    def _contents(self, pages: Sequence[int]) -> list[list[KV]]:
        return [self._device.read(page) for page in pages]

    def _deliver(self, send: SimSend) -> None:
        if self.is_closed or send.is_over:
            return
        plane = self._plane
        peer = plane.transports.get(send.peer)
        if peer is None:
            plane.clock.after(0.05, self._end, send, "nobody is there")
            return
        until = plane.network.cut_until(self.name, peer.name)
        if until > plane.clock.now:
            self._break_at_cut(send, peer, until)
            return
        rest = len(send.pages) - send.num_delivered
        count = rest if plane.chance.random() < 0.6 else plane.chance.randint(1, rest)
        self._move(send, peer, count)
        if send.num_delivered == len(send.pages):
            self._end(send, "")
        else:
            self.pump(send)

    def _break_at_cut(self, send: SimSend, peer: SimTransport, until: float) -> None:
        """Loses the link at both ends if a cut is long; a short one only delays."""
        plane = self._plane
        if until - plane.clock.now < LOSS_NOTICED_S:
            plane.clock.at(until, self._deliver, send)
            return
        plane.clock.after(LOSS_NOTICED_S, self.peer_lost, peer.name, peer.address)
        plane.clock.after(LOSS_NOTICED_S, peer.peer_lost, self.name, self.address)

    def _move(self, send: SimSend, peer: SimTransport, count: int) -> None:
        first = send.num_delivered
        pages = send.pages[first : first + count]
        contents = self._contents(pages)
        if send.snapshot is not None and contents != send.snapshot[first : first + count]:
            raise Wrong(f"a page of {send.transfer} changed while {self.name} sent it")
        send.num_delivered += count
        peer.receive(self.address, send.transfer, send.offset + first, contents)

    def receive(
        self, sender: str, transfer: Attempt, offset: int, contents: Sequence[Sequence[KV]]
    ) -> None:
        expected = self._expected.get(transfer)
        if expected is None:
            return  # aborted, or never expected: the bytes are dropped
        expected.senders.add(sender)
        for position, content in enumerate(contents, offset):
            if position in expected.arrived:
                raise Wrong(f"page {position} of {transfer} arrived twice")
            expected.arrived.add(position)
            self._device.write(expected.pages[position], content)
        self._plane.num_pages_moved += len(contents)
        if len(expected.arrived) == len(expected.pages):
            del self._expected[transfer]
            expected.on_done("")
            return
        leading = expected.num_told
        while leading in expected.arrived:
            leading += 1
        if leading > expected.num_told:
            expected.num_told = leading
            expected.on_progress(leading)

    def _end(self, send: SimSend, error: str) -> None:
        if send.is_over:
            return
        send.is_over = True
        self._sends.remove(send)
        if not self.is_closed:
            send.on_done(error)

"""The shell around a scheduler: everything that touches the world, and one loop.

It knows messages, pages and transfers, and nothing of what a scheduler decides.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.cache.prefix_cache import PrefixCache
from engine.steps.sequence import Slice
from kvtransfer.transport import PageStream, Transport
from node.core.instructions import (
    AbortTransfer,
    CancelSends,
    Event,
    ExpectPages,
    Instruction,
    PagesArrived,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    Scheduler,
    Send,
    SendPages,
    StreamPages,
)
from node.core.links import link_loads
from node.resources import resident_bytes
from node.shell.heartbeat import Heartbeats
from node.shell.publisher import OwnershipPublisher
from node.shell.runner import Runner
from node.shell.steps import Steps
from protocol.channel import Channel, PeerUnreachable
from protocol.counters import NodeCounters
from protocol.hashing import join_hashes
from protocol.ids import Attempt, Node
from protocol.messages import (
    AnyMessage,
    AuditPages,
    AuditReply,
    CacheFlushed,
    FlushCache,
    Load,
    Republish,
)

log = logging.getLogger(__name__)

LINKS_INTERVAL_S = 0.05
"""Looking at the links of 16 peers costs 0.1 ms: not something to do in every step."""
IDLE_WAIT_S = 0.1
"""How long an idle loop waits for the next event before it looks at its deadlines."""


@dataclass(eq=False)
class _Expected:
    """One life of an expected transfer: news of an aborted one must not be taken for those of the
    next one of the same name."""

    transfer: Attempt
    num_arrived: int = 0
    num_told: int = 0


class NodeShell:
    """Runs one scheduler until `stop`. Owns nothing that it is given; see `node.build`."""

    def __init__(
        self,
        node: Node,
        channel: Channel,
        scheduler: Scheduler,
        cache: PrefixCache,
        runner: Runner,
        transport: Transport,
        publisher: OwnershipPublisher,
        heartbeats: Heartbeats,
    ) -> None:
        self._node = node
        self._channel = channel
        self._scheduler = scheduler
        self._cache = cache
        self._transport = transport
        self._publisher = publisher
        self._heartbeats = heartbeats
        self._transfer_events: deque[tuple[_Expected | None, Event]] = deque()
        self._expected: dict[Attempt, _Expected] = {}
        self._streams: dict[Attempt, PageStream] = {}  # of pages that the newest step computes
        self._steps = Steps(runner, time.monotonic)
        self._links: dict[str, Any] = {}
        self._bytes_sent = 0
        self._next_look_at_links = 0.0
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ends `run` after the current step; may be called from any thread or signal handler."""
        self._stop.set()
        self._channel.wake()

    def run(self) -> None:
        """Raises DeviceBroken when a new process is needed."""
        idle = True
        while not self._stop.is_set():
            for event in self._events(wait=idle):
                self._execute(self._scheduler.handle(event, time.monotonic()))
            slices, instructions = self._scheduler.next_batch(time.monotonic())
            self._execute(instructions)
            if slices:
                if idle:  # others need not wait for the end of this step to know of it
                    self._heartbeats.update(self._load(idle))
                self._start(slices)
            idle = not slices and not self._steps
            while self._steps and not (slices and self._steps.may_stay):
                self._settle()
            self._report(idle)
        while self._steps:
            self._settle()

    def _start(self, slices: Sequence[Slice]) -> None:
        if self._steps.start(slices, self._layers_ready):
            self._finish_streams()

    def _settle(self) -> None:
        """Waits for the oldest step."""
        outcome, now = self._steps.settle(), time.monotonic()
        if outcome.failed:
            reason = f"a step failed on {self._node.name}: {outcome.reason}"
            self._execute(self._scheduler.abandon(outcome.failed, reason, now))
        if not self._steps:  # those who failed are cancelled; others need not wait any more
            self._finish_streams()
        self._execute(self._scheduler.finish(outcome.sampled, now))

    def _layers_ready(self, num_layers: int) -> None:
        for stream in self._streams.values():
            stream.layers_ready(num_layers)

    def _finish_streams(self) -> None:
        for stream in self._streams.values():
            stream.finish()
        self._streams.clear()

    def _events(self, wait: bool) -> Iterable[Event]:
        timeout_s = IDLE_WAIT_S if wait and not self._transfer_events else 0.0
        for message in self._channel.drain(timeout_s):
            if not self._operate(message):
                yield message
        while self._transfer_events:
            expected, event = self._transfer_events.popleft()
            if expected is None:
                yield event
            elif self._expected.get(expected.transfer) is expected:  # else it was aborted
                yield from self._news_of(expected, event)

    def _news_of(self, expected: _Expected, event: Event) -> Iterable[Event]:
        if not isinstance(event, PagesArrived):
            del self._expected[expected.transfer]
            yield event
        elif expected.num_told < expected.num_arrived:  # of several the newest is told
            expected.num_told = expected.num_arrived
            yield PagesArrived(expected.transfer, expected.num_told)

    def _execute(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Send):
                self._send(instruction)
            elif isinstance(instruction, SendPages):
                self._send_pages(instruction)
            elif isinstance(instruction, StreamPages):
                self._stream_pages(instruction)
            elif isinstance(instruction, CancelSends):
                self._streams.pop(instruction.transfer, None)
                self._transport.cancel(instruction.transfer)
            elif isinstance(instruction, ExpectPages):
                self._expect(instruction)
            elif isinstance(instruction, AbortTransfer):
                self._transport.abort(instruction.transfer)
                self._expected.pop(instruction.transfer, None)

    def _send(self, instruction: Send) -> None:
        try:
            self._channel.send(instruction.address, instruction.message)
        except PeerUnreachable as error:
            # The peer's absence is noticed by lease and deadline; this message has no reader.
            log.warning("message dropped: %s", error)
            self._channel.forget(instruction.address)

    def _send_pages(self, work: SendPages) -> None:
        def on_done(error: str) -> None:
            self._transfer_event(PagesSent(work.transfer, error, work.is_fetch))

        self._transport.send(work.data_addresses, work.transfer, work.pages, work.offset, on_done)

    def _stream_pages(self, work: StreamPages) -> None:
        def on_done(error: str) -> None:
            self._transfer_event(PagesSent(work.transfer, error))

        self._streams[work.transfer] = self._transport.stream(
            work.data_addresses, work.transfer, work.pages, work.offset, on_done
        )

    def _expect(self, work: ExpectPages) -> None:
        transfer = work.transfer
        self._expected[transfer] = expected = _Expected(transfer)

        def on_progress(num_pages: int) -> None:
            expected.num_arrived = num_pages
            self._transfer_event(PagesArrived(transfer, num_pages), expected)

        def on_done(error: str) -> None:
            end = ReceiveFailed(transfer, error) if error else PagesReceived(transfer)
            self._transfer_event(end, expected)

        self._transport.expect(work.transfer, work.pages, on_progress, on_done)

    def _transfer_event(self, event: Event, expected: _Expected | None = None) -> None:
        """Called on transport threads; a deque append is atomic."""
        self._transfer_events.append((expected, event))
        self._channel.wake()

    def _operate(self, message: AnyMessage) -> bool:
        """Carries out what an operator wants of the cache; False: the message is no such thing."""
        if isinstance(message, FlushCache):
            num_pages = self._cache.flush(message.cache_salt)
            flushed = CacheFlushed(self._node, message.flush_id, num_pages)
            self._send(Send(message.reply_address, flushed))
        elif isinstance(message, AuditPages):
            hashes = join_hashes(self._cache.hashes())
            self._send(
                Send(message.reply_address, AuditReply(self._node, message.audit_id, hashes))
            )
        elif isinstance(message, Republish):
            self._publisher.republish()
        else:
            return False
        return True

    def _report(self, idle: bool) -> None:
        if changes := self._cache.take_changes():
            self._publisher.publish(changes)
        self._heartbeats.update(self._load(idle))

    def _load(self, idle: bool) -> Load:
        load, now = self._scheduler.load(), time.monotonic()
        if idle or now >= self._next_look_at_links:
            self._next_look_at_links = now + LINKS_INTERVAL_S
            self._links = self._look_at_links(load)
        return msgspec.structs.replace(
            load,
            prefill_tokens_per_s=self._steps.rates.prefill_tokens_per_s,
            step_s=self._steps.rates.step_s,
            rss_bytes=resident_bytes(),
            counters=self._count(load),
            **self._links,
        )

    def _count(self, load: Load) -> NodeCounters:
        return msgspec.structs.replace(
            load.counters, busy_s=self._steps.busy_s, bytes_sent=self._bytes_sent
        )

    def _look_at_links(self, load: Load) -> dict[str, Any]:
        """The fields of `Load` about links; of `load`, its waits for them."""
        links = self._transport.links()
        outgoing = [link for link in links if link.direction == "out"]
        self._bytes_sent = sum(link.bytes_moved for link in outgoing)
        rates = [link.bytes_per_s for link in outgoing if link.bytes_per_s]
        return {
            "link_bytes_per_s": sum(rates) / len(rates) if rates else 0.0,
            "links": link_loads(links, load.links),
        }

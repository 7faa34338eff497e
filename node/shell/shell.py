"""`NodeShell`: the loop of a node. It carries between the core, which decides, and the world, and
knows nothing of what is decided.

    one turn:  begin_turn   messages and news of transfers ─► core ─► instructions are carried out,
                            until the step under way is nearly over; then the next is started
               (the device computes)
               end_turn     steps that must be over are awaited ─► core ─► instructions,
                            then what changed is published and told
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from engine.batches.sequence import Slice
from kvtransfer.transport import PageStream
from node.core.core import NodeCore
from node.core.expected_transfers import without_outdated
from node.core.instructions import (
    AbortTransfer,
    CancelSends,
    CopyPages,
    DrainMarked,
    EndSequence,
    Event,
    ExpectPages,
    Instruction,
    MarkDraining,
    PagesArrived,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    RewriteRecord,
    SendMessage,
    SendPages,
    StreamPages,
    ToldToLeave,
)
from node.load.links import link_loads
from node.resources import resident_bytes
from node.shell.ports import ChannelPort, HeartbeatsPort, PublisherPort, TransportPort
from node.shell.runner import Runner
from node.shell.steps import Steps
from protocol.channel import PeerUnreachable
from protocol.hashing import TOKEN_BYTES
from protocol.ids import Attempt
from protocol.messages import Generate, LinkLoad, Load, Message, Prefill

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.05
"""Looking at the links of 16 peers costs 0.1 ms: not something to do in every step."""
IDLE_WAIT_S = 0.1
"""How long an idle loop waits for the next event before it looks at its deadlines."""
MIN_SPARE_S = 0.003
"""A wait shorter than this is not worth the risk that it takes longer: the device would idle."""


class NodeShell:
    """Runs one core until `stop`, or until it has left. It owns nothing of what it is given;
    `node.build` does."""

    def __init__(
        self,
        core: NodeCore,
        channel: ChannelPort,
        transport: TransportPort,
        runner: Runner,
        publisher: PublisherPort,
        heartbeats: HeartbeatsPort,
        clock: Callable[[], float],
        num_refusals: Callable[[], int] = lambda: 0,
    ) -> None:
        """`clock` gives monotonic seconds, `num_refusals` how much of peers was refused so far."""
        self._core = core
        self._channel = channel
        self._transport = transport
        self._publisher = publisher
        self._heartbeats = heartbeats
        self._clock = clock
        self._num_refusals = num_refusals
        self._runner = runner
        self._compiles_before = runner.num_compiles
        self._steps = Steps(runner, clock)
        self._news: deque[Event] = deque()
        """What other threads and signal handlers have told; messages come from the channel."""
        self._streams: dict[Attempt, PageStream] = {}
        """Sends of pages that the newest step computes."""
        self._planned: Sequence[Slice] = ()
        """The step that this turn started."""
        self._idle = True
        """The last turn had nothing to compute."""
        self._links: tuple[LinkLoad, ...] = ()
        self._link_bytes_per_s = 0.0
        self._bytes_sent = 0
        self._rss_bytes = 0
        self._next_look = 0.0
        self._is_leaving = False
        self._stop = threading.Event()

    def leave(self) -> None:
        """Lets the node finish what it does, and then ends `run`; the second call ends it as `stop`
        does. May be called from any thread or signal handler."""
        if self._is_leaving:
            self.stop()
            return
        self._is_leaving = True
        self._note(ToldToLeave())

    def stop(self) -> None:
        """Ends `run` after the current turn; may be called from any thread or signal handler."""
        self._stop.set()
        self._channel.wake()

    def run(self) -> None:
        """Runs turn after turn until `stop`, or until the core may end after `leave`. Raises
        DeviceBroken when a new process is needed."""
        while not self._stop.is_set() and not self._core.may_end(self._clock()):
            self.begin_turn()
            self.end_turn()
        while self._steps:
            self._settle()
        if self._is_leaving:
            load = self._core.load()
            num_left = load.num_running + load.num_waiting
            log.info("this node leaves, with %d requests unfinished", num_left)

    @property
    def is_computing(self) -> bool:
        """True while a step is under way."""
        return len(self._steps) > 0

    def begin_turn(self) -> None:
        """Takes everything that has come, and starts a step if there is something to compute. An
        idle node waits a moment for something to come."""
        self._take(self._events(IDLE_WAIT_S if self._idle else 0.0))
        self._take_while_device_is_busy()
        self._planned, instructions = self._core.next_batch(self._clock(), self._steps.rates.read())
        self._carry_out(instructions)
        if not self._planned:
            return
        # Others need not wait for the end of this step to know of it; where the runner runs ahead,
        # the end of this turn comes soon enough, and the step need not wait for this.
        if self._idle and not self._runner.runs_ahead:
            self._heartbeats.update(self._load())
        if self._steps.start(self._planned, self._layers_ready):
            self._finish_streams()

    def end_turn(self) -> None:
        """Waits for every step that must be over before the next turn, and reports."""
        self._idle = not self._planned and not self._steps
        # One step may stay under way if this turn has started it and the runner runs ahead: the
        # next turn plans while the device computes.
        while self._steps and not (self._planned and self._steps.may_stay):
            self._settle()
        # After the tokens were sent: a coordinator takes an answer as the news of its pages, and
        # the record may come later.
        if changes := self._core.take_changes():
            self._publisher.publish(changes)
        self._heartbeats.update(self._load())

    def _settle(self) -> None:
        """Waits for the oldest step and tells the core what became of it."""
        outcome, now = self._steps.settle(), self._clock()
        if outcome.failed:
            abandoned = self._core.abandon(outcome.failed, outcome.reason, outcome.kind, now)
            self._carry_out(abandoned)
        if not self._steps:  # those who failed are cancelled; others need not wait any more
            self._finish_streams()
        self._carry_out(self._core.finish(outcome.sampled, now))

    def _layers_ready(self, num_layers: int) -> None:
        for stream in self._streams.values():
            stream.layers_ready(num_layers)

    def _finish_streams(self) -> None:
        for stream in self._streams.values():
            stream.finish()
        self._streams.clear()

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            self._carry_out(self._handled(event))

    def _take_while_device_is_busy(self) -> None:
        """Takes what comes as long as the next step need not be planned: a prompt that misses it
        waits for the end of one more step."""
        num_vain = 0
        # A wait may end for a wake that is over, so nothing coming ends only the second one.
        while num_vain < 2 and (spare_s := self._steps.spare_s(self._clock())) > MIN_SPARE_S:
            events = self._events(spare_s)
            self._take(events)
            num_vain += not events

    def _events(self, timeout_s: float) -> list[Event]:
        """Returns what has come, messages first: what a transfer has brought may be unwanted
        because of them. Waits up to `timeout_s` for the first."""
        events: list[Event] = list(self._channel.drain(0.0 if self._news else timeout_s))
        while self._news:
            events.append(self._news.popleft())
        return without_outdated(events)

    def _handled(self, event: Event) -> list[Instruction]:
        """Returns what the core answers to an event. A message that it cannot take costs whoever
        sent it an answer, and not this process."""
        if isinstance(event, Generate | Prefill):
            _log_request(event)
        try:
            return self._core.handle(event, self._clock())
        except Exception:
            if not isinstance(event, Message):
                raise
            log.exception("a %s could not be handled", type(event).__name__)
            return []

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, SendMessage):
                self._send(instruction)
            elif isinstance(instruction, SendPages):
                self._send_pages(instruction)
            elif isinstance(instruction, StreamPages):
                self._stream_pages(instruction)
            elif isinstance(instruction, CopyPages):
                self._steps.copy_pages(instruction.sources, instruction.destinations)
            elif isinstance(instruction, CancelSends):
                # A stream that is cancelled needs no `finish`.
                self._streams.pop(instruction.transfer, None)
                self._transport.cancel(instruction.transfer)
            elif isinstance(instruction, ExpectPages):
                self._expect(instruction)
            elif isinstance(instruction, AbortTransfer):
                self._transport.abort(instruction.transfer)
            elif isinstance(instruction, EndSequence):
                self._steps.end_sequence(instruction.sequence_id)
            elif isinstance(instruction, RewriteRecord):
                self._publisher.republish()
            elif isinstance(instruction, MarkDraining):
                self._heartbeats.tell_draining()
                self._publisher.mark_draining(lambda done: self._note(DrainMarked(done)))

    def _send(self, work: SendMessage) -> None:
        try:
            self._channel.send(work.address, work.message)
        except PeerUnreachable as error:
            # The peer's absence is noticed by lease and deadline; this message has no reader.
            log.warning("message dropped: %s", error)
            self._channel.forget(work.address)

    def _send_pages(self, work: SendPages) -> None:
        def on_done(error: str) -> None:
            self._note(PagesSent(work.transfer, error, work.is_fetch))

        self._transport.send(work.data_addresses, work.transfer, work.pages, work.offset, on_done)

    def _stream_pages(self, work: StreamPages) -> None:
        def on_done(error: str) -> None:
            self._note(PagesSent(work.transfer, error))

        self._streams[work.transfer] = self._transport.stream(
            work.data_addresses, work.transfer, work.pages, work.offset, on_done
        )

    def _expect(self, work: ExpectPages) -> None:
        transfer, serial = work.transfer, work.serial

        def on_progress(num_pages: int) -> None:
            self._note(PagesArrived(transfer, num_pages, serial))

        def on_done(error: str) -> None:
            if error:
                self._note(ReceiveFailed(transfer, error, serial))
            else:
                self._note(PagesReceived(transfer, serial))

        self._transport.expect(transfer, work.pages, on_progress, on_done)

    def _note(self, event: Event) -> None:
        """Queues an event for the core. It is called on other threads and by signal handlers; a
        deque's append is atomic."""
        self._news.append(event)
        self._channel.wake()

    def _load(self) -> Load:
        load, now = self._core.load(), self._clock()
        if self._idle or now >= self._next_look:
            self._next_look = now + LOOK_INTERVAL_S
            self._look(load)
        return msgspec.structs.replace(
            load,
            prefill_tokens_per_s=self._steps.rates.prefill_tokens_per_s,
            step_s=self._steps.rates.step_s,
            step_times=self._steps.step_times,
            rss_bytes=self._rss_bytes,
            link_bytes_per_s=self._link_bytes_per_s,
            links=self._links,
            counters=msgspec.structs.replace(
                load.counters,
                busy_s=self._steps.busy_s,
                bytes_sent=self._bytes_sent,
                refusals=self._num_refusals(),
                compiles_while_serving=self._runner.num_compiles - self._compiles_before,
            ),
        )

    def _look(self, load: Load) -> None:
        """Measures, for the next heartbeats, this process's memory and its links. `load` says how
        long the core has waited for their pages."""
        links = self._transport.links()
        outgoing = [link for link in links if link.direction == "out"]
        rates = [link.bytes_per_s for link in outgoing if link.bytes_per_s]
        self._bytes_sent = sum(link.bytes_moved for link in outgoing)
        self._link_bytes_per_s = sum(rates) / len(rates) if rates else 0.0
        self._links = link_loads(links, load.links)
        self._rss_bytes = resident_bytes()


def _log_request(message: Generate | Prefill) -> None:
    """Writes a line for a prompt that was asked for, by the name that its HTTP request has in the
    logs of all processes."""
    log.info(
        "%s: a prompt of %d tokens, request %s",
        message.attempt,
        len(message.tokens) // TOKEN_BYTES,
        message.x_request_id or "without a name",
        extra={"x_request_id": message.x_request_id},
    )

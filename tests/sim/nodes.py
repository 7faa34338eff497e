"""`SimNode`: one incarnation of a node, its real core and shell between played ports."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from decode.answers import Answers
from engine.batches.sequence import Slice
from engine.cache.prefix_cache import CacheChange
from node.core.core import NodeCore
from node.core.instructions import Instruction
from node.core.scheduler import Scheduler, SchedulerLimits
from node.liveness.heartbeats import work_changed
from node.load.rates import UNMEASURED, StepRates
from node.ownership.ownership_writer import OwnershipCall, OwnershipWriter
from node.shell.shell import NodeShell
from prefill.handovers import Handovers
from protocol.admission import MIN_CHUNK_TOKENS, OLDEST_SHARE
from protocol.ids import Addresses, Attempt, Node, Role
from protocol.messages import AnyMessage, Goodbye, Heartbeat, Load, Message, NodeInfo
from tests.sim.checks import Wrong
from tests.sim.world.data_plane import SimTransport
from tests.sim.world.device import SimDevice
from tests.sim.world.oracle import MAX_FORCED
from tests.sim.world.processes import Process
from tests.sim.world.redis_model import RedisDown
from tests.sim.world.shadow import CheckedCache

if TYPE_CHECKING:
    from tests.sim.cluster import SimCluster

FINGERPRINT = "simulated"
LEASE_S = 3.0
RECEIVE_TIMEOUT_S = 6.0
HEARTBEAT_S = 0.7
NEWS_S = 0.05
IDLE_TURN_S = 1.0
STEP_S = 0.015
CLOSE_S = 4.5
"""How long a node that has left waits for Redis to take its record."""
TOKEN_S = 0.0005
"""What a token of a prompt adds to a step, where steps are bounded."""


class SimNode(Process):
    """A node that computes for as long as its steps take, hears what comes meanwhile, and may
    die."""

    def __init__(self, cluster: SimCluster, name: str, role: Role, incarnation: int) -> None:
        super().__init__(cluster.clock, name)
        self.cluster = cluster
        self.role = role
        self.node = Node(name, incarnation)
        settings = cluster.settings
        # A step that runs ahead would be taken to last as long as the one behind it.
        runs_ahead = cluster.chance.random() < 0.5 and not settings.max_itl_s
        self.device = SimDevice(settings.page_size, settings.num_pages, runs_ahead)
        self.cache = CheckedCache(
            settings.num_pages, settings.page_size, self.device, cluster.shadow
        )
        self.info = self._info()
        self.channel = SimChannel(self)
        self.transport = SimTransport(cluster.plane, name, self.info.data_addresses[0], self.device)
        self.record = SimRecord(self)
        self.heartbeats = SimHeartbeats(self)
        self.core = self._make_core()
        self.shell = NodeShell(
            self.core,
            self.channel,
            self.transport,
            self.device,
            self.record,
            self.heartbeats,
            cluster.clock,
        )
        self.num_cut_steps = 0
        """Steps with a chunk beside answers that a bound may have cut."""
        self.back_after_s: float | None = None
        """How long after its end it starts again; None if it was not told to leave."""
        self.told_to_leave_at = math.inf
        self.has_left = False
        """It takes no more turns, and only its record is still to be taken back."""
        self._is_turning = False
        self._turn_number = 0
        cluster.network.listen(name, self.info.control_address, self.channel.hear)
        self.record.pump()
        self.after(0.0, self._turn, 0)

    def _info(self) -> NodeInfo:
        settings, address = self.cluster.settings, f"{self.name}.{self.node.incarnation}"
        return NodeInfo(
            node=self.node,
            control_address=address,
            data_addresses=(f"{address}:data",),
            layout=settings.layout,
            model_fingerprint=FINGERPRINT,
            num_pages=settings.num_pages,
            max_running_requests=settings.max_running,
            max_queued_requests=settings.max_waiting,
            device="simulated",
            max_itl_s=settings.max_itl_s,
            chunk_tokens=settings.chunk_tokens,
        )

    def _make_core(self) -> NodeCore:
        settings, info = self.cluster.settings, self.info
        limits = SchedulerLimits(
            chunk_tokens=settings.chunk_tokens,
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            max_itl_s=settings.max_itl_s,
            receive_timeout_s=RECEIVE_TIMEOUT_S,
        )
        self.scheduler = CheckedScheduler(
            self.role,
            self.node,
            Addresses(info.control_address, info.data_addresses),
            self.cache,
            self.cluster.hasher,
            limits,
            [Answers, Handovers],
        )
        return NodeCore(self.node, self.cache, self.scheduler, settings.drain_timeout_s)

    def wake(self) -> None:
        """Takes the next turn now, if none is going on: something came."""
        if not self._is_turning and not self.has_left:
            self._turn_number += 1
            self.after(0.0, self._turn, self._turn_number)

    def attempts_of(self, address: str) -> list[Attempt]:
        """Returns what this node does for a coordinator."""
        return self.core.attempts_of(address)

    def kill(self) -> None:
        self.is_dead = True
        self.transport.is_closed = True
        self.cluster.network.close(self.info.control_address)
        self.cluster.plane.lost(self.name, self.transport.address)

    def say_goodbye(self) -> None:
        """Ends this node as the real one does that has left: it says so, and takes back what Redis
        has of it."""
        self.cluster.leaves(self)
        self.has_left = True
        goodbye = Goodbye(self.node, is_planned=True)
        for address in self.record.writer.coordinators:
            self.channel.send(address, goodbye)
        self.record.close()
        self.after(CLOSE_S, self.closed)

    def closed(self) -> None:
        """Ends the process: nothing is left to do."""
        if not self.is_dead:
            self.kill()
            self.cluster.left(self)

    def _turn(self, number: int) -> None:
        if self._is_turning or number != self._turn_number:
            return  # a later call for the same thing
        self._is_turning = True
        self.shell.begin_turn()
        if not self.shell.is_computing:
            self._end_turn(False)
            return
        self.after(self._step_s(), self._end_turn, True)

    def _step_s(self) -> float:
        """Returns how long the step takes. Where steps are bounded all take as long as the tokens
        of prompts in them need, so that one that takes too long was cut wrongly."""
        max_itl_s = self.cluster.settings.max_itl_s
        if not max_itl_s:
            return STEP_S * (0.5 + self.cluster.chance.random())
        lengths = self.device.lengths
        num_prompt_tokens = sum(length for length in lengths if length > 1)
        seconds = STEP_S + TOKEN_S * num_prompt_tokens
        # Tokens that a grammar forces come several to a slice, whatever a chunk is cut to.
        spare_s = TOKEN_S * MAX_FORCED * len(lengths)
        most_s = spare_s + max(max_itl_s, STEP_S + TOKEN_S * MIN_CHUNK_TOKENS)
        # Who was stopped in the middle of a step has measured too long a time.
        was_frozen = self.frozen_until > 0.0
        has_answers = self.scheduler.has_answers
        if has_answers and seconds > most_s and not was_frozen:
            raise Wrong(f"answers at {self.name} wait {seconds:.4f} s for a step")
        self.num_cut_steps += has_answers and num_prompt_tokens >= MIN_CHUNK_TOKENS
        return seconds

    def _end_turn(self, has_computed: bool) -> None:
        self.shell.end_turn()
        self.transport.step_over()
        self._is_turning = False
        if self.core.may_end(self.clock.now):
            self.say_goodbye()
            return
        self._turn_number += 1
        is_busy = has_computed or self.channel.inbox
        self.after(0.0 if is_busy else IDLE_TURN_S, self._turn, self._turn_number)


class CheckedScheduler(Scheduler):
    """Remembers whether the newest step has answers that wait for its chunks, and looks whether the
    oldest prompt has its share of each step, so that no prompt waits for all that come later."""

    has_answers = False

    def next_batch(
        self, now: float, rates: StepRates = UNMEASURED
    ) -> tuple[list[Slice], list[Instruction]]:
        self.has_answers = False
        planned = super().next_batch(now, rates)
        if planned[0]:
            self._check_oldest()
        return planned

    def _check_oldest(self) -> None:
        chunks = {p.job.attempt: len(p.part.token_ids) for p in self._steps[-1] if p.is_given}
        for job in self._prompts._admitted:
            assert job.sequence is not None
            is_left = job.is_computed_here and job.sequence.has_chunk
            if job.attempt in self._fetching or not (is_left or job.attempt in chunks):
                continue
            share = int(OLDEST_SHARE * sum(chunks.values()))
            if is_left and chunks.get(job.attempt, 0) < share:
                raise Wrong(f"the oldest prompt has no {share} tokens of a step")
            return

    def _chunk_tokens(self, rates: StepRates) -> int:
        self.has_answers = True
        return super()._chunk_tokens(rates)


class SimChannel:
    """The control channel of a node: what it says goes over the network, what it hears waits."""

    def __init__(self, process: SimNode) -> None:
        self._process = process
        self.inbox: deque[AnyMessage] = deque()

    def hear(self, message: AnyMessage) -> None:
        self.inbox.append(message)
        self._process.wake()

    def send(self, address: str, message: Message) -> None:
        self._process.cluster.network.send(self._process.name, address, message)

    def drain(self, timeout_s: float = 0.0) -> list[AnyMessage]:
        messages = list(self.inbox)
        self.inbox.clear()
        return messages

    def forget(self, address: str) -> None:
        pass

    def wake(self) -> None:
        self._process.wake()


class SimHeartbeats:
    """Sends heartbeats as the real thread does: soon after work came or went, and several times per
    lease."""

    def __init__(self, process: SimNode) -> None:
        self._process = process
        self._load: Load | None = None
        self._last_sent = -1.0
        self._is_due = False
        process.after(HEARTBEAT_S, self._beat)

    def tell_draining(self) -> None:
        pass  # nobody looks at /ready here

    def update(self, load: Load) -> None:
        old, self._load = self._load, load
        has_changed = old is None or work_changed(old, load)
        if has_changed and not self._is_due:
            self._is_due = True
            wait_s = max(0.0, self._last_sent + NEWS_S - self._process.clock.now)
            self._process.after(wait_s, self._send)

    def _beat(self) -> None:
        self._process.after(HEARTBEAT_S, self._beat)
        if self._process.clock.now - self._last_sent >= 0.5 * HEARTBEAT_S:
            self._send()

    def _send(self) -> None:
        self._is_due = False
        if self._load is None or self._process.has_left:
            return
        self._last_sent = self._process.clock.now
        message = Heartbeat(self._process.info, self._load, LEASE_S)
        for address in self._process.record.writer.coordinators:
            self._process.channel.send(address, message)


class SimRecord:
    """Writes a node's record to Redis as the real thread does: one call after the other."""

    def __init__(self, process: SimNode) -> None:
        self._process = process
        self.writer = OwnershipWriter(process.info, LEASE_S)
        self._is_calling = False
        self._pump_number = 0

    def publish(self, changes: Sequence[CacheChange]) -> None:
        if self._process.cluster.loses_changes(self._process.node):
            changes = []
        self.writer.publish(changes)
        self.pump()

    def republish(self) -> None:
        self.writer.republish()
        self.pump()

    def mark_draining(self, on_done: Callable[[bool], None]) -> None:
        self.writer.mark_draining(on_done)
        self.pump()

    def close(self) -> None:
        self.writer.close()
        self.pump()

    def pump(self, number: int | None = None) -> None:
        if self._is_calling or number not in (None, self._pump_number):
            return
        self._pump_number += 1
        clock = self._process.clock
        if self.writer.is_over:
            self._process.closed()
            return
        call = self.writer.next_call(clock.now)
        if call is None:
            wait_s = max(0.001, self.writer.wake_at - clock.now)
            self._process.after(wait_s, self.pump, self._pump_number)
            return
        self._is_calling = True
        redis = self._process.cluster.redis
        try:
            result = redis.write(self._process.node, LEASE_S, call)
        except RedisDown:
            self._process.after(0.2, self._failed)
            return
        self._process.after(redis.delay_s, self._replied, call, result)

    def _replied(self, call: OwnershipCall, result: object) -> None:
        self._is_calling = False
        self.writer.replied(call, result, self._process.clock.now)
        if self.writer.is_replaced:
            self._process.cluster.replaced(self._process)
            return
        self.pump()

    def _failed(self) -> None:
        self._is_calling = False
        self.writer.unreachable(self._process.clock.now)
        self.pump()

"""`ScaledCoordinator`: the real `CoordinatorCore` and `OwnershipMirror`, and what their work costs.

The real time of its own work is measured, apart for what Redis tells and for requests: their
hashing, routing and bookkeeping, and the ticks. It does not move the virtual clock. What does is a
call to Redis: 0.5 ms, and 2 µs for each stream of an XREAD, which the client takes to ask for it.
"""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.scale.conversations import Asked
from benchmarks.scale.nodes import HOP_S, REDIS_S
from benchmarks.scale.world import World
from coordinator.answers.answer import Answer
from coordinator.answers.request import Request
from coordinator.config import CoordinatorConfig
from coordinator.core.core import CoordinatorCore
from coordinator.core.instructions import AnswerEnded, AnswerStarted, Instruction, Send
from coordinator.ownership.mirror import READ_BLOCK_MS, MirrorCall, OwnershipMirror
from protocol.messages import AnyMessage, CoordinatorAlive, Generate, Heartbeat

DRAIN_S = 0.0005
"""What comes within so long is taken together, as the shell does while it was busy."""
STREAM_S = 2e-6


@dataclass
class Spent:
    """What a coordinator has done so far."""

    heartbeats: int = 0
    alive_messages: int = 0
    requests: int = 0
    request_s: float = 0.0
    mirror_s: float = 0.0


class ScaledCoordinator:
    """Serves those clients whose requests come to it."""

    def __init__(self, cluster: World, name: str, seed: int) -> None:
        self._cluster = cluster
        self._events = cluster.events
        self.address = f"{name}.cluster.local:41000#0123456789abcdef"
        ids = itertools.count()
        self.core = CoordinatorCore(
            CoordinatorConfig(max_queued_requests=100_000),
            self.address,
            partial(random.Random.random, random.Random(seed)),
            lambda: f"{name}-{next(ids):032x}",
        )
        self.mirror = OwnershipMirror(self.address, self.core.index)
        self.spent = Spent()
        self.lag_s: list[float] = []
        """How old the newest change was, whenever changes had come."""
        self._asked: dict[str, Asked] = {}
        self._inbox: list[AnyMessage] = []
        self._tick_number = 0
        self._pump()
        self._tick(0)

    def hear(self, message: AnyMessage) -> None:
        """Takes a message that has come."""
        if not self._inbox:
            self._events.after(DRAIN_S, self._drain)
        self._inbox.append(message)

    def ask(self, asked: Asked) -> None:
        """Submits the next turn of a conversation."""
        request = Request(asked.prompt, self._cluster.sampling, self._cluster.answer_tokens)
        began = time.perf_counter()
        started, *instructions = self.core.submit(request, self._events.now)
        self.spent.request_s += time.perf_counter() - began
        self.spent.requests += 1
        assert isinstance(started, AnswerStarted)
        self._asked[started.answer.request_id] = asked
        self._carry_out(instructions)
        self._plan_tick()

    def _drain(self) -> None:
        messages, self._inbox = self._inbox, []
        spent, now = self.spent, self._events.now
        instructions: list[Instruction] = []
        began = time.perf_counter()
        for message in messages:
            instructions += self.core.handle(message, now)
        num_heartbeats = sum(isinstance(message, Heartbeat) for message in messages)
        spent.heartbeats += num_heartbeats
        if num_heartbeats < len(messages):
            spent.request_s += time.perf_counter() - began
        self._carry_out(instructions)
        self._plan_tick()

    def _tick(self, number: int) -> None:
        if number == self._tick_number:
            began = time.perf_counter()
            instructions = self.core.tick(self._events.now)
            self.spent.request_s += time.perf_counter() - began
            self._carry_out(instructions)
            self._plan_tick()

    def _plan_tick(self) -> None:
        """Plans the next tick as the shell does: at `wake_at`, and every 50 ms in any case."""
        now = self._events.now
        began = time.perf_counter()
        wake_at = self.core.wake_at(now)
        self.spent.request_s += time.perf_counter() - began
        self._tick_number += 1
        wait_s = 0.05 if wake_at is None else min(0.05, max(0.0, wake_at - now))
        self._events.after(wait_s, self._tick, self._tick_number)

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Send):
                message = instruction.message
                if isinstance(message, Generate):
                    self.core.sent(message, self._events.now)
                    asked = self._asked[message.attempt.request_id]
                    asked.sent_at = self._events.now
                    address = instruction.address
                    self._events.after(HOP_S, self._cluster.begin, address, message, asked)
                self.spent.alive_messages += isinstance(message, CoordinatorAlive)
            elif isinstance(instruction, AnswerEnded):
                answer: Answer = instruction.answer
                asked = self._asked.pop(answer.request_id)
                self._cluster.ended(asked, answer)

    # The mirror

    def _pump(self) -> None:
        now = self._events.now
        began = time.perf_counter()
        call = self.mirror.next_call(now)
        self.spent.mirror_s += time.perf_counter() - began
        if call is None:
            self._events.after(max(0.0, self.mirror.wake_at - now), self._pump)
        elif call.script != "read_changes":
            self._events.after(REDIS_S, self._read, call)
        else:
            wait_s = REDIS_S + STREAM_S * len(call.args[0])
            self._events.after(wait_s, self._read_changes, call)

    def _read(self, call: MirrorCall) -> None:
        self._replied(call, self._cluster.redis.read(call))

    def _read_changes(self, call: MirrorCall) -> None:
        """Lets Redis answer when there is a change, or when it has waited long enough."""
        redis = self._cluster.redis
        if redis.has_news(call):
            self._read(call)
            return
        has_answered = False

        def answer() -> None:
            nonlocal has_answered
            if not has_answered:
                has_answered = True
                self._read(call)

        redis.when_changed(lambda: self._events.after(REDIS_S / 2, answer))
        self._events.after(READ_BLOCK_MS / 1e3, answer)

    def _replied(self, call: MirrorCall, result: Any) -> None:
        began = time.perf_counter()
        self.mirror.replied(call, result, self._events.now)
        self.spent.mirror_s += time.perf_counter() - began
        if call.script == "read_changes" and result:
            self.lag_s.append(self.mirror.lag_s)
        self._pump()

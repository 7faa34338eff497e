"""A coordinator's core under an open load, before nodes that take virtual time for prompts."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.answers.request import Request
from coordinator.core.core import CoordinatorCore
from coordinator.core.errors import TooBusy
from coordinator.core.instructions import AnswerEnded, AnswerStarted, Instruction, Send
from protocol.hashing import tokens_from_bytes
from protocol.ids import Node
from protocol.messages import Generate, Load, TokenOut, TokensOut
from protocol.sampling import Sampling
from tests.support.coordinator.cores import core_of
from tests.support.coordinator.nodes import heartbeat

TOKENS_PER_S, STEP_S = 2_000.0, 0.01
ANSWER = [5] * 8
NUM_NODES = 2
MEAN_PROMPT = 160
CAPACITY_PER_S = NUM_NODES / (MEAN_PROMPT / TOKENS_PER_S + STEP_S)
LOOK_S, HEARTBEAT_S = 0.01, 0.2


@dataclass
class Ask:
    """One request and what became of it."""

    tenant: str
    at: float
    answered_at: float | None = None
    retry_after_s: int | None = None
    """What it was told when it was refused."""

    @property
    def first_token_s(self) -> float | None:
        return None if self.answered_at is None else self.answered_at - self.at


class VirtualLoad:
    """Poisson processes of tenants, whose prompts have 64 to 256 tokens."""

    def __init__(self, per_s: Mapping[str, float], seconds: float, **settings: object) -> None:
        names = [f"p{number}" for number in range(NUM_NODES)]
        self.core: CoordinatorCore = core_of(**settings)
        self.asks: list[Ask] = []
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._free_at = dict.fromkeys(names, 0.0)
        self._queued = dict.fromkeys(names, 0)
        self._running: dict[str, Ask] = {}
        self._ends = seconds + 5.0
        for tenant, rate in per_s.items():
            chance = random.Random(tenant)
            now = chance.expovariate(rate)
            while now < seconds:
                prompt = [chance.randrange(10, 2_000) for _ in range(chance.randint(64, 256))]
                self._at(now, self._ask, tenant, prompt)
                now += chance.expovariate(rate)

    def run(self) -> list[Ask]:
        """Returns all requests, a while after the last one."""
        self._beat(0.0)
        self._look(0.0)
        while self._events and self._events[0][0] < self._ends:
            now, _, call, arguments = heapq.heappop(self._events)
            call(now, *arguments)
        return self.asks

    def _at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), call, arguments))

    def _beat(self, now: float) -> None:
        rates = {"prefill_tokens_per_s": TOKENS_PER_S, "step_s": STEP_S, "free_pages": 10_000}
        room: dict[str, Any] = {"num_pages": 10_000, "max_running_requests": 256}
        for name, queued in self._queued.items():
            load = Load(role="prefill", queued_tokens=queued, **rates)  # type: ignore[arg-type]
            self.core.handle(heartbeat("prefill", Node(name, 1), load, **room), now)
        load = Load(role="decode", **rates)  # type: ignore[arg-type]
        self.core.handle(heartbeat("decode", Node("d0", 1), load, **room), now)
        self._at(now + HEARTBEAT_S, self._beat)

    def _look(self, now: float) -> None:
        self._carry_out(self.core.tick(now), now)
        self._at(now + LOOK_S, self._look)

    def _ask(self, now: float, tenant: str, prompt: list[int]) -> None:
        ask = Ask(tenant, now)
        self.asks.append(ask)
        request = Request(prompt, Sampling(seed=1), len(ANSWER), tenant=tenant)
        try:
            started, *instructions = self.core.submit(request, now)
        except TooBusy as refused:
            ask.retry_after_s = refused.retry_after_s
            return
        assert isinstance(started, AnswerStarted)
        self._running[started.answer.request_id] = ask
        self._carry_out(instructions, now)

    def _carry_out(self, instructions: Sequence[Instruction], now: float) -> None:
        for one in instructions:
            if isinstance(one, Send) and isinstance(one.message, Generate):
                self._compute(one.message, now)
            elif isinstance(one, AnswerEnded) and one.answer.error is not None:
                del self._running[one.answer.request_id]  # it was given up

    def _compute(self, generate: Generate, now: float) -> None:
        assert generate.prefill_node is not None
        name = generate.prefill_node.name
        num_tokens = len(tokens_from_bytes(generate.tokens))
        self._queued[name] += num_tokens
        begins = max(now, self._free_at[name])
        self._free_at[name] = begins + num_tokens / TOKENS_PER_S + STEP_S
        self._at(self._free_at[name], self._answer, generate, name, num_tokens)

    def _answer(self, now: float, generate: Generate, name: str, num_tokens: int) -> None:
        self._queued[name] -= num_tokens
        self._running.pop(generate.attempt.request_id).answered_at = now
        out = TokenOut(generate.attempt, 0, ANSWER, "length")
        self._carry_out(self.core.handle(TokensOut([out], Node("d0", 1)), now), now)
        self._carry_out(self.core.tick(now), now)

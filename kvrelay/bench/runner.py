"""Puts a load on a server: each dialogue is a task that sends its turns one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from kvrelay.bench.dialects import Dialect
from kvrelay.bench.generator_health import GeneratorHealth, HealthWatch
from kvrelay.bench.http_post import Target, post
from kvrelay.bench.results.record import AnswerRecord, AnswerWatch
from kvrelay.bench.workloads.dialogue import Dialogue, PastTurn, UserTurn

SKIPPED = "not sent"


@dataclass(frozen=True)
class LoadPlan:
    """How the load is put on the server."""

    concurrency: int
    """How many dialogues are under way at once; 0: each begins when it arrives (open loop)."""
    timeout_s: float
    checks_length: bool
    """Whether an answer must have exactly as many tokens as were asked for."""


@dataclass(frozen=True)
class LoadOutcome:
    """What was seen of a run."""

    records: list[AnswerRecord]
    health: GeneratorHealth


class LoadRunner:
    """Runs dialogues against a server; used for one run."""

    def __init__(
        self,
        target: Target,
        dialect: Dialect,
        plan: LoadPlan,
        on_record: Callable[[AnswerRecord], None],
    ) -> None:
        """`on_record` is told of each request as it ends."""
        self._target = target
        self._dialect = dialect
        self._plan = plan
        self._on_record = on_record
        self._records: list[AnswerRecord] = []
        self._health = HealthWatch()
        self._started_s = 0.0

    async def run(self, dialogues: Sequence[Dialogue]) -> LoadOutcome:
        """Sends everything and returns what was seen. A request that fails ends its dialogue: the
        turns after it fail with it, since they cannot be asked."""
        self._health.start()
        self._started_s = time.perf_counter()
        if self._plan.concurrency:
            waiting = iter(dialogues)
            users = (self._user(waiting) for _ in range(self._plan.concurrency))
            await asyncio.gather(*users)
        else:
            await asyncio.gather(*(self._arrive(dialogue) for dialogue in dialogues))
        health = self._health.end([record.late_s for record in self._records])
        return LoadOutcome(self._records, health)

    def _now_s(self) -> float:
        return time.perf_counter() - self._started_s

    async def _user(self, waiting: Iterator[Dialogue]) -> None:
        """Takes one dialogue after the other until none is left (closed loop)."""
        for dialogue in waiting:
            await self._talk(dialogue, None)

    async def _arrive(self, dialogue: Dialogue) -> None:
        due_s = dialogue.arrival_s or 0.0
        await asyncio.sleep(max(0.0, due_s - self._now_s()))
        await self._talk(dialogue, due_s)

    async def _talk(self, dialogue: Dialogue, due_s: float | None) -> None:
        """Asks turn by turn. `due_s` is when the first one was to be sent, if that was planned."""
        past: list[PastTurn] = []
        for position, turn in enumerate(dialogue.turns):
            watch, record = await self._ask(past, turn, due_s if position == 0 else None)
            self._add(record)
            if record.failure:
                for _ in dialogue.turns[position + 1 :]:
                    at_s = record.ended_s
                    self._add(AnswerWatch(at_s).end(at_s, None, SKIPPED))
                return
            past.append(PastTurn(turn, watch.text, watch.output_ids))

    def _add(self, record: AnswerRecord) -> None:
        self._records.append(record)
        self._on_record(record)

    async def _ask(
        self, past: Sequence[PastTurn], turn: UserTurn, due_s: float | None
    ) -> tuple[AnswerWatch, AnswerRecord]:
        """Sends one turn and reads its answer to the end."""
        body = msgspec.json.encode(self._dialect.body(past, turn))
        sent_s = self._now_s()
        watch = AnswerWatch(sent_s, 0.0 if due_s is None else max(0.0, sent_s - due_s))

        def on_event(event: bytes) -> None:
            self._health.num_events += 1
            try:
                watch.add(self._dialect.read(event), self._now_s())
            except msgspec.MsgspecError:
                watch.failure = watch.failure or "unreadable event"

        failure, message = "", ""
        try:
            sending = post(self._target, self._dialect.path, body, on_event)
            status, error_body = await asyncio.wait_for(sending, self._plan.timeout_s)
            if status != 200:
                failure, message = f"status {status}", error_body.decode(errors="replace")
        except asyncio.TimeoutError:
            failure, message = "timeout", f"no end within {self._plan.timeout_s:g} s"
        except OSError as error:
            failure, message = "connection", str(error)
        wanted = turn.num_output_tokens if self._plan.checks_length else None
        return watch, watch.end(self._now_s(), wanted, failure, message)

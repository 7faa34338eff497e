"""The client: lets the users of a load ask a system, and notes when each event came.

It is one process for all systems. Token ids go in and come out, answers are greedy and have a fixed
length, so that every system computes the same number of tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from benchmarks.serving.loads import Ask, User
from benchmarks.serving.systems.asking import Question, Refused, System
from kvrelay.bench.generator_health import GeneratorHealth, HealthWatch
from kvrelay.bench.results.record import AnswerRecord, AnswerWatch
from kvrelay.bench.workloads.dialogue import token_ids

TIMEOUT_S = 120.0
"""How long a user waits for a whole answer before it counts as failed."""


@dataclass(frozen=True)
class RowRecord:
    """One request that has ended, and the row of the table that it counts in."""

    row: str
    answer: AnswerRecord


@dataclass(frozen=True)
class Seen:
    """What was seen of one load."""

    records: Sequence[RowRecord]
    health: GeneratorHealth


class LoadClient:
    """Puts one load on a system; used once."""

    def __init__(self, system: System, vocabulary: range) -> None:
        """Prompts are made of the ids of `vocabulary`."""
        self._system = system
        self._vocabulary = vocabulary
        self._records: list[RowRecord] = []
        self._health = HealthWatch()
        self._started_s = 0.0

    async def run(self, users: Sequence[User]) -> Seen:
        """Returns what was seen when every user has got the last answer."""
        self._health.start()
        self._started_s = time.perf_counter()
        await asyncio.gather(*map(self._talk, users))
        lates_s = [record.answer.late_s for record in self._records]
        return Seen(self._records, self._health.end(lates_s))

    def _now_s(self) -> float:
        return time.perf_counter() - self._started_s

    async def _talk(self, user: User) -> None:
        """Asks one request after the other. A dialogue ends with its first failure, since the next
        turn would need the answer."""
        history: list[int] = []
        due_s = user.begins_s
        for ask in user.asks:
            if due_s + ask.pause_s > user.ends_s:
                return
            due_s += ask.pause_s
            prompt = history + token_ids(ask.passages, self._vocabulary)
            await asyncio.sleep(max(0.0, due_s - self._now_s()))
            watch, record = await self._ask(ask, prompt, user.key, due_s)
            self._records.append(RowRecord(ask.row, record))
            if user.is_dialogue:
                if record.failure:
                    return
                history = prompt + list(watch.output_ids)
            due_s = self._now_s()

    async def _ask(
        self, ask: Ask, prompt: list[int], key: int, due_s: float
    ) -> tuple[AnswerWatch, AnswerRecord]:
        """Sends one request and reads its answer to the end."""
        question = Question(prompt, ask.num_output_tokens, key)
        reader = self._system.reader()
        sent_s = self._now_s()
        watch = AnswerWatch(sent_s, max(0.0, sent_s - due_s))

        def on_event(event: bytes) -> None:
            self._health.num_events += 1
            try:
                watch.add(reader.read(event), self._now_s())
            except msgspec.MsgspecError:
                watch.failure = watch.failure or "unreadable event"

        failure, message = "", ""
        try:
            await asyncio.wait_for(self._system.ask(question, on_event), TIMEOUT_S)
        except asyncio.TimeoutError:
            failure, message = "timeout", f"no end within {TIMEOUT_S:g} s"
        except Refused as error:
            failure, message = f"status {error.status}", str(error)
        except (OSError, msgspec.MsgspecError, KeyError) as error:
            failure, message = type(error).__name__, str(error)
        return watch, watch.end(self._now_s(), ask.num_output_tokens, failure, message)

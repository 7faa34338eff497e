"""`Scheduler`: what a node computes next, of all its kinds of work. Pure: time comes in,
instructions and slices go out.

A step has a token of every answer that goes on, and then chunks of prompts, whatever these are for.
Chunks beside answers may be cut, so that no answer waits long for its next token.
One more step may be planned while one is under way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from engine.batches.sequence import Sampled, Slice
from engine.cache.prefix_cache import PrefixCache
from node.core.fetching import FETCH_TIMEOUT_S, Fetching
from node.core.instructions import (
    Event,
    Instruction,
    PagesArrived,
    PagesSent,
    ReceiveFailed,
    TransferNews,
)
from node.core.job import PlannedSlice
from node.core.kept_answers import KeptAnswers
from node.core.prompts import PromptLimits, Prompts
from node.core.work import KindOfWork, NodeParts, WorkFactory
from node.load.counters import Counters
from node.load.rates import UNMEASURED, StepRates
from protocol.admission import chunk_tokens
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Addresses, Attempt, Node, Role
from protocol.messages import (
    Cancel,
    FailureKind,
    Fetch,
    FetchRefused,
    Generate,
    Load,
    Prefill,
)
from protocol.trust.bounds import MAX_TOKEN_ID

RECEIVE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class SchedulerLimits:
    """How much a node takes on at once, and how long it waits for other nodes."""

    chunk_tokens: int
    """The most prompt tokens of one step."""
    max_running: int
    max_waiting: int
    max_itl_s: float = 0.0
    """How long a step may take that computes prompts beside answers: its chunks are cut to that.
    0: they are not."""
    receive_timeout_s: float = RECEIVE_TIMEOUT_S
    """How long another node may take to compute a prompt for an answer here."""
    fetch_timeout_s: float = FETCH_TIMEOUT_S
    """For how long a fetch may make no progress."""
    vocab_size: int = MAX_TOKEN_ID + 1
    """Requests with ids of tokens beyond this are refused."""


class Scheduler:
    """Does continuous batching: requests join and leave between any two steps."""

    def __init__(
        self,
        role: Role,
        node: Node,
        addresses: Addresses,
        cache: PrefixCache,
        hasher: PageHasher,
        limits: SchedulerLimits,
        kinds: Seq[WorkFactory],
    ) -> None:
        """`addresses` are this node's own, where other nodes send messages and pages. `kinds` make
        the kinds of work that it does."""
        self.role: Role = role
        """Told in every load; it may change."""
        self.kept_answers = KeptAnswers()
        """What was answered here lately."""
        self._cache = cache
        self._limits = limits
        self._counters = Counters()
        self._fetching = Fetching(
            node, addresses, cache, hasher, self._counters, limits.fetch_timeout_s
        )
        self._prompts = Prompts(
            node,
            cache,
            hasher,
            self._counters,
            self._fetching,
            PromptLimits(limits.max_running, limits.max_waiting, limits.vocab_size),
        )
        parts = NodeParts(
            node,
            addresses,
            cache,
            hasher,
            self._counters,
            self._prompts,
            limits.receive_timeout_s,
            self.kept_answers,
        )
        self._works: list[KindOfWork] = [make(parts) for make in kinds]
        self._steps: deque[list[PlannedSlice]] = deque()
        """The steps under way, the oldest first."""
        self._last_step_ended_at = -math.inf

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes a message or the news of a transfer."""
        if isinstance(event, Cancel):
            return self.drop(event.attempt, now)
        if isinstance(event, Fetch):
            return self._fetching.serve(event)
        if isinstance(event, FetchRefused):
            return self._fetching.give_up(event.attempt, now)
        if isinstance(event, PagesSent) and event.is_fetch:
            self._fetching.sent(event)
            return []
        if isinstance(event, TransferNews) and event.transfer in self._fetching:
            return self._fetch_went_on(event, now)
        instructions: list[Instruction] = []
        if isinstance(event, Generate | Prefill):
            # A newer attempt must find the pages of the older one free, or cached.
            instructions += self.drop(event.attempt, now)
        for work in self._works:
            instructions += work.handle(event, now)
        return instructions

    def drop(self, attempt: Attempt, now: float) -> list[Instruction]:
        """Gives up this attempt and every older one of its request, whatever they are for."""
        instructions = self._prompts.drop(attempt, now)
        for work in self._works:
            instructions += work.cancelled(attempt)
        return instructions

    def attempts_of(self, reply_address: str) -> list[Attempt]:
        """Returns the attempts that were asked for from this address."""
        return self._prompts.attempts_of(reply_address)

    def keep_answers_of(self, reply_address: str, now: float) -> None:
        """Keeps what was answered of the requests that were asked for from this address."""
        for job in self._prompts.jobs_of(reply_address):
            job.sink.keep(job, now)

    def next_batch(
        self, now: float, rates: StepRates = UNMEASURED
    ) -> tuple[list[Slice], list[Instruction]]:
        """Plans the next step, which counts as under way from now on. Returns its slices, and the
        instructions to carry out before it is started. `rates` are those of the last steps.

        Without slices there is no step: nothing can be computed before the next event, the end of
        the step under way, or a deadline.
        """
        assert len(self._steps) < 2, "two steps are under way"
        # What is given up comes first, then what makes room, then what takes it.
        instructions = self._fetching.expire(now)
        for work in self._works:
            instructions += work.before_step(now)
        instructions += self._prompts.admit(lambda: self._chains_coming(now), now)
        step: list[PlannedSlice] = []
        for work in self._works:
            work.add_tokens(step)
        num_tokens = self._chunk_tokens(rates) if step else self._limits.chunk_tokens
        instructions += self._prompts.add_chunks(step, num_tokens, now)
        if step:
            self._steps.append(step)
        self._prompts.busy_since = now if self._steps else None
        return [planned.part for planned in step], instructions

    def finish(self, sampled: Seq[Sampled | None], now: float) -> list[Instruction]:
        """Takes what the oldest step under way has sampled for each of its slices, and ends the
        step."""
        instructions: list[Instruction] = []
        device_free_at, self._last_step_ended_at = self._last_step_ended_at, now
        for planned, new in zip(self._steps.popleft(), sampled, strict=True):
            if not planned.is_wanted:
                continue
            # A step that was started ahead may have sampled what is known by now.
            is_next = planned.sequence.samples_next(planned.part)
            # Before the sink is told: it may end the job, whose pages are cached only once
            # committed.
            self._prompts.computed(planned, new, device_free_at, now)
            if new is not None and is_next:
                instructions += planned.job.sink.sampled(planned.job, new, now)
        for work in self._works:
            instructions += work.after_step()
        return instructions

    def abandon(
        self, failed: Collection[int], reason: str, kind: FailureKind, now: float
    ) -> list[Instruction]:
        """Notes that some slices (by position) of the oldest step under way could not be computed:
        their requests fail and their pages come back. `finish` must follow, with the other
        slices."""
        instructions: list[Instruction] = []
        step = self._steps[0]
        for job in [step[i].job for i in sorted(failed) if step[i].is_wanted]:
            instructions += self.drop(job.attempt, now)
            instructions.append(self._prompts.failure(job, reason, kind))
        step[:] = [planned for i, planned in enumerate(step) if i not in failed]
        return instructions

    @property
    def is_idle(self) -> bool:
        """True if nothing runs or waits, and no page is held: neither by a request nor because it
        is on its way to another node."""
        num_jobs = self._prompts.num_running + self._prompts.num_waiting
        return not self._steps and num_jobs == 0 and self._cache.num_held_pages == 0

    def load(self) -> Load:
        """Returns queues, pages and counters as a heartbeat tells them. The shell adds measured
        rates."""
        return self._counters.load(
            self.role,
            self._cache,
            num_running=self._prompts.num_running,
            num_waiting=self._prompts.num_waiting,
            queued_tokens=self._prompts.queued_tokens,
            promised_pages=self._prompts.promised_pages,
        )

    def _chunk_tokens(self, rates: StepRates) -> int:
        """Returns how many tokens of prompts a step may have that answers wait for."""
        most, max_itl_s = self._limits.chunk_tokens, self._limits.max_itl_s
        if not max_itl_s:
            return most
        return min(most, chunk_tokens(max_itl_s, rates.step_s, rates.prefill_tokens_per_s))

    def _fetch_went_on(self, event: TransferNews, now: float) -> list[Instruction]:
        transfer = event.transfer
        if isinstance(event, ReceiveFailed):
            return self._fetching.failed(transfer, now)
        if isinstance(event, PagesArrived):
            num_tokens = self._fetching.arrived(transfer, event.num_pages, now)
        else:
            num_tokens = self._fetching.received(transfer, now)
        return self._prompts.fetched(transfer, num_tokens, now)

    def _chains_coming(self, now: float) -> Iterator[Seq[PageHash]]:
        for work in self._works:
            yield from work.chains_coming(now)

"""`NodeCore`: everything that a node decides. Pure: events come in, instructions and slices go out.

    messages ─┐                      ┌─► instructions ─► channel, transport, runner, publisher
              ├─► NodeCore ──────────┤
    transfers ┘     Scheduler        └─► slices ───────► runner ─► finish, abandon
                    ExpectedTransfers
                    CoordinatorLeases, KeptAnswers, Leaving

It knows no socket, no tensor and no clock; `node/shell/shell.py` has these.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import msgspec

from engine.batches.sequence import Sampled, Slice
from engine.cache.prefix_cache import CacheChange, PrefixCache
from node.core.coordinator_leases import CoordinatorLeases
from node.core.expected_transfers import ExpectedTransfers
from node.core.instructions import (
    DrainMarked,
    Event,
    Instruction,
    MarkDraining,
    RewriteRecord,
    SendMessage,
    ToldToLeave,
    TransferNews,
)
from node.core.leaving import DRAIN_TIMEOUT_S, Leaving
from node.core.scheduler import Scheduler
from node.load.rates import UNMEASURED, StepRates
from protocol.hashing import join_hashes
from protocol.ids import Attempt, Node
from protocol.messages import (
    COORDINATOR_LEASE_S,
    AuditPages,
    AuditReply,
    CacheFlushed,
    CoordinatorAlive,
    CoordinatorGoodbye,
    Failed,
    FailureKind,
    FlushCache,
    Generate,
    Load,
    Republish,
    TakenOver,
    TakeOver,
)

log = logging.getLogger(__name__)


class NodeCore:
    """Decides what one node does; its shell carries that out. `now` is monotonic seconds
    everywhere."""

    def __init__(
        self,
        node: Node,
        cache: PrefixCache,
        scheduler: Scheduler,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
    ) -> None:
        """`cache` must be the one that `scheduler` uses. A node that is told to leave takes
        `drain_timeout_s` at most."""
        self._node = node
        self._cache = cache
        self._scheduler = scheduler
        self._expected = ExpectedTransfers()
        self._coordinators = CoordinatorLeases()
        self._kept = scheduler.kept_answers
        self._leaving = Leaving(drain_timeout_s)
        self._questions: list[TakeOver] = []
        """Those to be answered in the next turn, when it is known who is silent."""

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes a message, the news of a transfer, or what has become of the wish to leave."""
        if isinstance(event, ToldToLeave):
            return self._leave(now)
        if isinstance(event, DrainMarked):
            self._leaving.marked(event.is_written)
            if not event.is_written:
                log.warning(
                    "requests would still come, as Redis took no mark: this node ends at once"
                )
            return []
        if isinstance(event, FlushCache | AuditPages | Republish):
            return [self._operate(event)]
        if isinstance(event, CoordinatorAlive):
            self._coordinators.heard(event.address, event.lease_s, now)
            return []
        if isinstance(event, CoordinatorGoodbye):
            self._coordinators.ended(event.address, now)
            return []
        if isinstance(event, TakeOver):
            self._questions.append(event)
            return []
        if isinstance(event, TransferNews):
            if not self._expected.is_current(event):
                return []
        elif isinstance(event, Generate):  # its sender may not know yet that this node lives
            self._coordinators.heard(event.reply_address, COORDINATOR_LEASE_S, now)
        return self._expected.noted(self._scheduler.handle(event, now))

    def next_batch(
        self, now: float, rates: StepRates = UNMEASURED
    ) -> tuple[list[Slice], list[Instruction]]:
        """Plans the next step, as `Scheduler.next_batch` does, and gives up the requests of
        coordinators that have gone silent.

        Every message that has come must have been handled before, or a coordinator might be taken
        for silent because this node was busy.
        """
        instructions: list[Instruction] = []
        for address in self._coordinators.take_silent(now):
            attempts = self._scheduler.attempts_of(address)
            if attempts:
                log.warning("coordinator %s is silent; its requests are dropped", address)
            self._scheduler.keep_answers_of(address, now)
            for attempt in attempts:
                instructions += self._scheduler.drop(attempt, now)
                # It may have been stopped for a while, and would wait for their tokens for ever.
                instructions.append(SendMessage(address, self._orphaned(attempt)))
        questions, self._questions = self._questions, []
        for question in questions:
            reply = self._taken_over(question, now)
            instructions.append(SendMessage(question.reply_address, reply))
        slices, planned = self._scheduler.next_batch(now, rates)
        return slices, self._expected.noted(instructions + planned)

    def finish(self, sampled: Sequence[Sampled | None], now: float) -> list[Instruction]:
        """Takes what the oldest step has sampled; see `Scheduler.finish`."""
        return self._expected.noted(self._scheduler.finish(sampled, now))

    def abandon(
        self, failed: Collection[int], reason: str, kind: FailureKind, now: float
    ) -> list[Instruction]:
        """Notes that some slices of the oldest step have failed; see `Scheduler.abandon`."""
        if kind == "node":
            reason = f"a step failed on {self._node.name}: {reason}"
        return self._expected.noted(self._scheduler.abandon(failed, reason, kind, now))

    def may_end(self, now: float) -> bool:
        """Returns True once this node was told to leave and may end. It is asked after every
        turn."""
        return self._leaving.has_begun and self._leaving.is_over(self._scheduler.is_idle, now)

    def load(self) -> Load:
        """Returns queues, pages and counters as a heartbeat tells them. The shell adds what it
        measures."""
        return self._scheduler.load()

    def attempts_of(self, reply_address: str) -> list[Attempt]:
        """Returns the attempts that this node works on for whoever listens at this address."""
        return self._scheduler.attempts_of(reply_address)

    def take_changes(self) -> list[CacheChange]:
        """Returns which pages became findable or ceased to be since the last call, in order."""
        return self._cache.take_changes()

    def _leave(self, now: float) -> list[Instruction]:
        if self._leaving.has_begun:
            return []
        self._leaving.begin(now)
        log.info("told to stop: this node gets no new requests and finishes those that it has")
        return [MarkDraining()]

    def _taken_over(self, question: TakeOver, now: float) -> TakenOver:
        """Returns what is kept of an answer, for the coordinator that takes it over.

        Who has asked does not own it: another node may have heard the first coordinator a moment
        later and refuse, and then any coordinator may be the next to ask.
        """
        kept = self._kept.get(question.resume_key, now)
        lives = (
            self._coordinators.has_alive(question.owner_tag, now)
            if kept is None
            else self._coordinators.is_alive(kept.owner, now)
        )
        reply = TakenOver(self._node, question.question_id, lives)
        if kept is None or lives:
            return reply
        return msgspec.structs.replace(
            reply, tokens=kept.tokens, finish=kept.finish, cached_tokens=kept.cached_tokens
        )

    def _orphaned(self, attempt: Attempt) -> Failed:
        reason = "the coordinator was silent for longer than its lease"
        return Failed(attempt, reason, "node", self._node)

    def _operate(self, wish: FlushCache | AuditPages | Republish) -> Instruction:
        """Does what an operator wants of the cache, and returns the instruction that answers it."""
        if isinstance(wish, FlushCache):
            num_pages = self._cache.flush(wish.cache_salt)
            flushed = CacheFlushed(self._node, wish.flush_id, num_pages)
            return SendMessage(wish.reply_address, flushed)
        if isinstance(wish, AuditPages):
            hashes = join_hashes(self._cache.hashes())
            return SendMessage(wish.reply_address, AuditReply(self._node, wish.audit_id, hashes))
        return RewriteRecord()

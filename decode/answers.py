"""`Answers`: the work of answering requests. Pure.

An answer's prompt is computed here, in the same steps as the tokens of other answers, or by a
prefill node, whose pages and first tokens are received. From then on the answer has a part in
every step, until it ends or gives way. One that gave way is a prompt again, of all tokens that it
has; its next token is the same as if it had not given way.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from decode.outbox import Outbox
from decode.own_answer import AnswerJob, OwnAnswer
from decode.receiving import Receiving
from decode.running import RunningAnswers
from engine.batches.sequence import Sampled, Slice
from engine.cache.prefix_cache import HeldPages
from node.core.instructions import (
    Event,
    Instruction,
    PagesArrived,
    PagesReceived,
    ReceiveFailed,
    SendMessage,
)
from node.core.job import FetchOrder, Job, PlannedSlice
from node.core.work import NodeParts
from protocol.admission import most_tokens
from protocol.hashing import PageHash, tokens_from_bytes
from protocol.ids import Attempt
from protocol.messages import Failed, FailureKind, Generate, PrefillDone, TokenOut
from protocol.prompt_logprobs import is_all_of


class Answers:
    """The kind of work that answers requests. It is also the sink of its jobs."""

    refusal_kind: FailureKind = "request"
    """Decode nodes have pools of one size: what does not fit here fits nowhere."""
    waits_for_received = True

    def __init__(self, parts: NodeParts) -> None:
        self._node = parts.node
        self._cache = parts.cache
        self._counters = parts.counters
        self._prompts = parts.prompts
        self._timeout_s = parts.receive_timeout_s
        self._receiving = Receiving(
            parts.addresses, parts.cache, parts.hasher, parts.counters, parts.receive_timeout_s
        )
        self._running = RunningAnswers(parts.cache, parts.hasher)
        self._outbox = Outbox(parts.node)

    # As a kind of work

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes new requests, and news of prompts that prefill nodes compute for answers here."""
        if isinstance(event, Generate):
            return self._prompts.enqueue(self._job_of(event), now)
        if isinstance(event, PrefillDone):
            return self._prefill_done(event, now)
        if isinstance(event, PagesArrived):
            self._receiving.arrived(event.transfer, event.num_pages, now)
        elif isinstance(event, PagesReceived):
            return self._join(self._receiving.received(event.transfer, now), now)
        elif isinstance(event, ReceiveFailed):
            return self._receive_failed(event.transfer, event.reason, now)
        elif isinstance(event, Failed):
            return self._prefill_failed(event, now)
        return []

    def cancelled(self, attempt: Attempt) -> list[Instruction]:
        """Does nothing: when its jobs have left, nothing is kept of them."""
        return []

    def before_step(self, now: float) -> list[Instruction]:
        """Fails answers whose pages did not come from the prefill node in time. Then lets answers
        give way: the youngest one that still receives its pages, to a prompt of another node that
        was blocked too long; and the youngest running ones, to older ones that lack pages."""
        instructions: list[Instruction] = []
        for attempt in self._receiving.late(now):
            reason = f"no prefill within {self._timeout_s:g} s"
            instructions += self._receive_failed(attempt, reason, now)
        youngest = self._receiving.youngest
        if youngest is not None and self._prompts.should_make_room(now):
            instructions += self._prompts.give_way(youngest, now)
        for job in self._running.who_gives_way():
            instructions += self._prompts.give_way(job, now)
        return instructions

    def add_tokens(self, step: list[PlannedSlice]) -> None:
        """Adds the newest tokens of every running answer."""
        self._running.add_tokens(step)

    def after_step(self) -> list[Instruction]:
        """Returns the messages with what the step has sampled, one per coordinator."""
        return self._outbox.flush()

    def chains_coming(self, now: float) -> Iterable[Seq[PageHash]]:
        """Returns the chains of prompts whose pages prefill nodes are sending."""
        return self._receiving.chains(now)

    # As a sink

    def may_begin(self, job: AnswerJob) -> bool:
        """Returns True: an answer never waits for anything but room."""
        return True

    def admitted(self, job: AnswerJob, now: float) -> list[Instruction]:
        """Asks the prefill node for the pages of the prompt, or lets the answer run if it is
        computed here."""
        if not job.is_computed_here:
            return self._receiving.begin(job, now)
        self._running.add(job)
        return []

    def fetched(self, job: AnswerJob) -> list[Instruction]:
        """Does nothing: fetched pages are of use here only."""
        return []

    def before_chunk(self, job: AnswerJob, part: Slice) -> list[Instruction]:
        """Does nothing: the pages that a step completes stay here."""
        return []

    def sampled(self, job: AnswerJob, sampled: Sampled, now: float) -> list[Instruction]:
        """Queues new tokens for the coordinator, and ends the answer if its last token is among
        them."""
        assert job.sequence is not None
        answer = job.purpose
        num_before = len(job.tokens) - answer.num_prompt_tokens
        tokens, finish = answer.tokens_until_end(num_before, sampled.tokens)
        job.tokens += tokens  # the sequence has the same list
        self._counters.generated_tokens += len(tokens)
        has_times = job.recorder is not None  # with its first tokens, and after it gave way
        out = TokenOut(
            attempt=job.attempt,
            start=num_before,
            tokens=tokens,
            finish=finish,
            cached_tokens=job.cached_tokens,
            transferred_pages=answer.num_expected_pages,
            fetched_tokens=job.fetched_tokens,
            logprobs=list(sampled.logprobs[: len(tokens)]),
            prompt_logprobs=job.prompt_logprobs.take(),
            times=job.take_times() if has_times else None,
            prefill_times=answer.take_prefill_times() if has_times else None,
        )
        self._outbox.add(job.reply_address, out)
        if not finish:
            return []
        # Committed before the coordinator hears of the end, so that the next turn finds the pages.
        self._prompts.commit(job, now)
        return self._prompts.leave(job, now)

    def left(self, job: AnswerJob, held: HeldPages) -> list[Instruction]:
        """Releases the pages, and stops the prefill node if it is still sending."""
        self._running.discard(job)
        instructions = self._receiving.give_up(job)
        self._cache.release(held)
        return instructions

    # Its own

    def _job_of(self, request: Generate) -> AnswerJob:
        tokens = tokens_from_bytes(request.tokens)
        is_sent_elsewhere = bool(request.prefill_address) and request.prefill_node != self._node
        return Job(
            attempt=request.attempt,
            tokens=tokens,
            max_tokens=most_tokens(len(tokens), request.max_new_tokens),
            namespace=request.namespace,
            sampling=request.sampling,
            reply_address=request.reply_address,
            sink=self,
            purpose=OwnAnswer(request, num_prompt_tokens=len(tokens)),
            fetch=FetchOrder.of(request),
            is_computed_here=not is_sent_elsewhere,
        )

    def _prefill_done(self, done: PrefillDone, now: float) -> list[Instruction]:
        """Takes what a prefill node says at the end, if it is whole."""
        job = self._receiving.get(done.attempt)
        if job is None:
            return []
        if not done.first_tokens or not is_all_of(done.prompt_logprobs, job.sampling):
            reason = f"{done.node.name} has left out tokens, or logprobs of the prompt"
            return self._receive_failed(done.attempt, reason, now)
        return self._join(self._receiving.prefill_done(done, now), now)

    def _join(self, job: AnswerJob | None, now: float) -> list[Instruction]:
        """Lets an answer run whose pages and first tokens are here; does nothing for None."""
        if job is None:
            return []
        done = job.purpose.prefilled
        assert done is not None
        job.spent("transfer", now)
        self._running.add(job)
        if done.prompt_logprobs is not None:
            job.prompt_logprobs.add(done.prompt_logprobs)
        first = Sampled(tuple(done.first_tokens), tuple(done.first_logprobs))
        instructions = self.sampled(job, first, now)
        # At once: no step may follow that would flush the outbox.
        return instructions + self._outbox.flush()

    def _receive_failed(self, attempt: Attempt, reason: str, now: float) -> list[Instruction]:
        """Fails the attempt whose pages did not come. The prefill node is named as the one to
        avoid."""
        job = self._receiving.get(attempt)
        if job is None:
            return []
        prefill_node = job.purpose.request.prefill_node
        assert prefill_node is not None, "pages are received from somebody"
        self._counters.transfer_failures += 1
        failed = Failed(attempt, reason, "node", prefill_node)
        return [*self._prompts.drop(attempt, now), SendMessage(job.reply_address, failed)]

    def _prefill_failed(self, failed: Failed, now: float) -> list[Instruction]:
        job = self._receiving.get(failed.attempt)
        if job is None:
            return []
        return [*self._prompts.drop(failed.attempt, now), SendMessage(job.reply_address, failed)]

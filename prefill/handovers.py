"""`Handovers`: the work of computing prompts for other nodes. Pure.

The pages of a prompt are sent to the node that asked for it: cached and fetched ones at once, those
that a step completes while it is computed, layer by layer. With the last step the first tokens of
the answer follow. Pages are held until the last send has ended; see `prefill/sending.py`.

A `Prefill` brings no page hashes, although its sender has them: what this node caches and owns it
answers for with hashes of its own, which take a hundredth of the time of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from engine.batches.sequence import Sampled, Slice
from engine.cache.prefix_cache import HeldPages
from node.core.instructions import (
    Event,
    Instruction,
    PagesSent,
    SendMessage,
    SendPages,
    StreamPages,
)
from node.core.job import FetchOrder, Job, PlannedSlice
from node.core.work import NodeParts
from prefill.sending import PagesBeingSent
from protocol.hashing import PageHash, tokens_from_bytes
from protocol.ids import Attempt
from protocol.messages import Failed, FailureKind, Prefill, PrefillDone, TokenOut, TokensOut
from protocol.timelines.node_spans import NodeTimes


@dataclass(eq=False)
class Handover:
    """The purpose of a job whose pages go to another node."""

    request: Prefill
    num_handed_pages: int
    """How many leading pages the other node has, or was sent."""


HandoverJob = Job[Handover]


class Handovers:
    """The kind of work that computes prompts for other nodes. It is also the sink of its jobs."""

    refusal_kind: FailureKind = "node"
    """Another node may have a larger pool."""
    waits_for_received = False

    def __init__(self, parts: NodeParts) -> None:
        self._node = parts.node
        self._page_size = parts.hasher.page_size
        self._counters = parts.counters
        self._prompts = parts.prompts
        self._sending = PagesBeingSent(parts.cache)

    # As a kind of work

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes new prompts, and news of pages that were sent."""
        if isinstance(event, Prefill):
            return self._prompts.enqueue(self._job_of(event), now)
        if isinstance(event, PagesSent):
            return self._sent(event, now)
        return []

    def cancelled(self, attempt: Attempt) -> list[Instruction]:
        """Stops what is being sent for the attempt."""
        return self._sending.cancel(attempt)

    def before_step(self, now: float) -> list[Instruction]:
        """Does nothing: a prompt does not grow, and the node that asked for it watches the time."""
        return []

    def add_tokens(self, step: list[PlannedSlice]) -> None:
        """Adds nothing: the answers are given elsewhere."""

    def after_step(self) -> list[Instruction]:
        """Does nothing: each prompt is reported as soon as it is sampled."""
        return []

    def chains_coming(self, now: float) -> Iterable[Seq[PageHash]]:
        """Returns nothing: no other node computes prompts for this one."""
        return ()

    # As a sink

    def may_begin(self, job: HandoverJob) -> bool:
        """Returns False while pages of an earlier job of the same attempt are still being sent."""
        return job.attempt not in self._sending

    def admitted(self, job: HandoverJob, now: float) -> list[Instruction]:
        """Sends the pages that are cached."""
        assert job.sequence is not None
        return self._send(job, job.sequence.held.num_cached_pages)

    def fetched(self, job: HandoverJob) -> list[Instruction]:
        """Sends the pages that have been fetched."""
        assert job.sequence is not None
        return self._send(job, job.sequence.num_computed // self._page_size)

    def before_chunk(self, job: HandoverJob, part: Slice) -> list[Instruction]:
        """Streams the pages that the step completes: those that end within `part`, and with the
        last part also the last page."""
        is_last = part.sampling is not None
        # The last page may not be full, and is complete only with the last token.
        num_pages = len(part.pages) if is_last else part.end // self._page_size
        pages, offset = self._hand_over(job, num_pages)
        if not pages:
            return []
        return [StreamPages(job.purpose.request.data_addresses, job.attempt, pages, offset)]

    def sampled(self, job: HandoverJob, sampled: Sampled, now: float) -> list[Instruction]:
        """Reports that the prompt is computed, with its first tokens, and ends the job."""
        times = job.take_times()
        instructions = self._first_token(job, sampled, times)
        done = PrefillDone(
            attempt=job.attempt,
            first_tokens=list(sampled.tokens),
            cached_tokens=job.cached_tokens,
            node=self._node,
            fetched_tokens=job.fetched_tokens,
            first_logprobs=list(sampled.logprobs),
            prompt_logprobs=job.prompt_logprobs.take(),
            times=times,
        )
        instructions.append(SendMessage(job.reply_address, done))
        return instructions + self._prompts.leave(job, now)

    def left(self, job: HandoverJob, held: HeldPages) -> list[Instruction]:
        """Releases the pages when nothing is being sent of them any more."""
        self._sending.leave(job.attempt, held)
        return []

    # Its own

    def _job_of(self, request: Prefill) -> HandoverJob:
        tokens = tokens_from_bytes(request.tokens)
        return Job(
            attempt=request.attempt,
            tokens=tokens,
            max_tokens=len(tokens),
            namespace=request.namespace,
            sampling=request.sampling,
            reply_address=request.reply_address,
            sink=self,
            purpose=Handover(request, num_handed_pages=request.skip_pages),
            fetch=FetchOrder.of(request),
        )

    def _first_token(
        self, job: HandoverJob, sampled: Sampled, times: NodeTimes | None
    ) -> list[Instruction]:
        """Sends the first token to the coordinator too, which gets it once more from the node that
        answers, with what that node knows of the end. Several at once may be more than the answer
        is to have."""
        request = job.purpose.request
        if not request.answer_address or len(sampled.tokens) != 1:
            return []
        out = TokenOut(
            attempt=job.attempt,
            start=0,
            tokens=list(sampled.tokens),
            cached_tokens=job.cached_tokens,
            transferred_pages=job.purpose.num_handed_pages - request.skip_pages,
            fetched_tokens=job.fetched_tokens,
            logprobs=list(sampled.logprobs),
            times=request.asker_times,
            prefill_times=times,
        )
        return [SendMessage(request.answer_address, TokensOut([out], self._node))]

    def _send(self, job: HandoverJob, num_pages: int) -> list[Instruction]:
        """Sends those of the first `num_pages` pages, all of which are in the pool, that were not
        sent yet."""
        pages, offset = self._hand_over(job, num_pages)
        if not pages:
            return []
        return [SendPages(job.purpose.request.data_addresses, job.attempt, pages, offset)]

    def _hand_over(self, job: HandoverJob, num_pages: int) -> tuple[list[int], int]:
        """Returns those of the first `num_pages` pages that the other node neither has nor was
        sent, and their offset in the transfer. They count as sent from now on."""
        assert job.sequence is not None
        handover = job.purpose
        first = handover.num_handed_pages
        pages = job.sequence.held.pages[first:num_pages]
        if pages:
            handover.num_handed_pages = num_pages
            self._sending.begin(job.attempt, job.reply_address)
            self._counters.pages_sent += len(pages)
        return pages, first - handover.request.skip_pages

    def _sent(self, event: PagesSent, now: float) -> list[Instruction]:
        reply_address = self._sending.ended(event.transfer)
        if not event.error or not reply_address:
            return []
        self._counters.transfer_failures += 1
        failed = Failed(event.transfer, event.error, "node", self._node)
        return [
            *self._prompts.drop(event.transfer, now),
            *self._sending.cancel(event.transfer),
            SendMessage(reply_address, failed),
        ]

"""Prompts that prefill nodes compute for answers given here: their pages come one after another.
Pure.

    begin ──► ExpectPages, Prefill ──► arrived … received ──┐
                      └──────────────► PrefillDone ─────────┴──► ready to run

What has arrived is committed at once: it can be found and is owned, whatever becomes of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from decode.own_answer import AnswerJob
from engine.cache.prefix_cache import HeldPages, PrefixCache
from node.core.instructions import AbortTransfer, ExpectPages, Instruction, SendMessage
from node.load.counters import Counters
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Addresses, Attempt
from protocol.messages import Cancel, Generate, Prefill, PrefillDone

PATIENCE_S = 2.0
"""A request that needs the same pages as another one waits for them while they keep coming. It
does not inherit the queue of a slow prefill node, nor wait for a hung one."""


@dataclass(eq=False)
class _PendingReceive:
    job: AnswerJob
    held: HeldPages
    deadline: float
    progress_at: float
    num_arrived_pages: int = 0
    done: PrefillDone | None = None
    done_at: float = 0.0

    @property
    def is_complete(self) -> bool:
        return self.num_arrived_pages == self.job.purpose.num_expected_pages


class Receiving:
    """The jobs whose prompts prefill nodes compute, until pages and first tokens are here."""

    def __init__(
        self,
        addresses: Addresses,
        cache: PrefixCache,
        hasher: PageHasher,
        counters: Counters,
        timeout_s: float,
    ) -> None:
        """`addresses` are this node's own, where prefill nodes send messages and pages."""
        self._addresses = addresses
        self._cache = cache
        self._hasher = hasher
        self._counters = counters
        self._timeout_s = timeout_s
        self._under_way: dict[Attempt, _PendingReceive] = {}

    def get(self, attempt: Attempt) -> AnswerJob | None:
        """Returns the job of this attempt; None if its pages are not under way."""
        under_way = self._under_way.get(attempt)
        return under_way.job if under_way is not None else None

    @property
    def youngest(self) -> AnswerJob | None:
        """The job that arrived last of those whose pages are under way; None without any."""
        jobs = (under_way.job for under_way in self._under_way.values())
        return max(jobs, key=lambda job: job.arrival, default=None)

    def chains(self, now: float) -> Iterator[Seq[PageHash]]:
        """Returns the chains of page hashes that are worth waiting for: their pages keep coming."""
        for under_way in self._under_way.values():
            if now - under_way.progress_at < PATIENCE_S:
                yield under_way.job.hashes

    def late(self, now: float) -> list[Attempt]:
        """Returns the attempts that have taken too long."""
        return [attempt for attempt, u in self._under_way.items() if now >= u.deadline]

    def begin(self, job: AnswerJob, now: float) -> list[Instruction]:
        """Asks the prefill node that the request names for the pages that the job lacks."""
        assert job.sequence is not None
        held, request = job.sequence.held, job.purpose.request
        pages = held.pages[held.num_cached_pages : self._hasher.num_pages(len(job.tokens))]
        job.purpose.num_expected_pages = len(pages)
        self._under_way[job.attempt] = _PendingReceive(
            job, held, now + self._timeout_s, self._progress_of(job, held, now)
        )
        prefill = Prefill(
            attempt=job.attempt,
            tokens=request.tokens,
            namespace=request.namespace,
            sampling=request.sampling,
            skip_pages=held.num_cached_pages,
            reply_address=self._addresses.control,
            data_addresses=self._addresses.data,
            fetch_node=request.fetch_node,
            fetch_address=request.fetch_address,
            fetch_pages=request.fetch_pages,
            answer_address=_answer_address(request),
            asker_times=job.recorder.times() if job.recorder is not None else None,
            x_request_id=request.x_request_id,
        )
        return [
            # Expect before asking: the first pages may come before the next turn.
            ExpectPages(job.attempt, pages),
            SendMessage(request.prefill_address, prefill),
        ]

    def arrived(self, attempt: Attempt, num_pages: int, now: float) -> None:
        """Notes that the first `num_pages` of those expected are here. All of these are full pages:
        the last one only comes with `received`."""
        under_way = self._under_way.get(attempt)
        if under_way is not None:
            self._arrived(under_way, num_pages, now)

    def received(self, attempt: Attempt, now: float) -> AnswerJob | None:
        """Notes that all pages are here. Returns the job if its first tokens are here too, so that
        it can run."""
        under_way = self._under_way.get(attempt)
        if under_way is None:
            return None
        self._arrived(under_way, under_way.job.purpose.num_expected_pages, now)
        if under_way.done is not None:
            self._counters.exposed(under_way.done.node.name, now - under_way.done_at)
        return self._take_ready(under_way)

    def prefill_done(self, done: PrefillDone, now: float) -> AnswerJob | None:
        """Takes the first tokens. Returns the job if its pages are here too, so that it can run."""
        under_way = self._under_way.get(done.attempt)
        if under_way is None:
            return None
        under_way.done, under_way.done_at = done, now
        job = under_way.job
        job.spent("handover", now)
        job.purpose.prefilled, job.purpose.prefill_times = done, done.times
        job.cached_tokens = done.cached_tokens
        job.fetched_tokens = done.fetched_tokens
        return self._take_ready(under_way)

    def give_up(self, job: AnswerJob) -> list[Instruction]:
        """Aborts the transfer of this job and cancels it at the prefill node; returns [] if its
        pages are not under way."""
        if self._under_way.pop(job.attempt, None) is None:
            return []
        request = job.purpose.request
        job.purpose.num_expected_pages = 0
        return [
            AbortTransfer(job.attempt),
            SendMessage(request.prefill_address, Cancel(job.attempt)),
        ]

    def _progress_of(self, job: AnswerJob, held: HeldPages, now: float) -> float:
        """Returns when others that wait for the same next page last made progress, or `now` if
        there are none: asking once more does not make the page come, so patience with it does not
        begin anew."""
        first = held.num_cached_pages
        others = [
            under_way.progress_at
            for under_way in self._under_way.values()
            if under_way.job.hashes[first : first + 1] == job.hashes[first : first + 1] != []
        ]
        return max(others, default=now)

    def _arrived(self, under_way: _PendingReceive, num_pages: int, now: float) -> None:
        num_new = num_pages - under_way.num_arrived_pages
        if num_new <= 0:
            return
        under_way.num_arrived_pages, under_way.progress_at = num_pages, now
        self._counters.pages_received += num_new
        num_pages_here = under_way.held.num_cached_pages + num_pages
        self._cache.commit(under_way.held, under_way.job.hashes[:num_pages_here], now)

    def _take_ready(self, under_way: _PendingReceive) -> AnswerJob | None:
        if not under_way.is_complete or under_way.done is None:
            return None
        job = under_way.job
        assert job.sequence is not None
        # The first tokens are not among them yet: `Answers._join` adds these.
        job.sequence.num_computed = len(job.tokens)
        del self._under_way[job.attempt]
        return job


def _answer_address(request: Generate) -> str:
    """Returns where the prefill node may send the first token; "" if it lacks what belongs to it:
    whether an answer of no tokens has one, and logprobs of the prompt, which are long."""
    is_short = request.max_new_tokens > 0 and request.sampling.prompt_logprobs_from < 0
    return request.reply_address if is_short else ""

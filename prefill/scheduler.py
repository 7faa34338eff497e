"""What a prefill node does next. Pure: time comes in, instructions and slices go out.

A job's life:  waiting → fetching → running (chunk by chunk, each sent while it is computed) → gone.
Only a job that is told of an owner fetches, and only what is not cached here.
Pages are acquired when a job starts to run, and released when it is gone and the last of its sends
has ended; see `prefill.sending`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice

from engine.cache.prefix_cache import PrefixCache
from engine.steps.sequence import Sampled, Sequence, Slice
from node.core.counters import Counters
from node.core.fetching import FETCH_TIMEOUT_S, Fetching
from node.core.instructions import (
    Event,
    Instruction,
    PagesArrived,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    Send,
    SendPages,
    StreamPages,
)
from node.core.shared_prefix import MAX_LOOKED_AT, next_page_is_coming
from prefill.sending import Sending
from protocol.hashing import PageHash, PageHasher, tokens_from_bytes
from protocol.ids import Addresses, Attempt, Node
from protocol.messages import (
    Cancel,
    Failed,
    FailureKind,
    Fetch,
    FetchRefused,
    Load,
    Prefill,
    PrefillDone,
)


@dataclass(frozen=True)
class PrefillLimits:
    """Bounds of a prefill node; tokens, requests and seconds."""

    chunk_tokens: int
    max_running: int
    max_waiting: int
    fetch_timeout_s: float = FETCH_TIMEOUT_S


@dataclass(eq=False)
class Job:
    """One prompt to compute. `num_handed_pages`: leading pages that decode has or will receive."""

    request: Prefill
    tokens: list[int]
    hashes: list[PageHash]
    num_handed_pages: int
    sequence: Sequence | None = None
    """While it runs."""
    fetched_tokens: int = 0

    @property
    def attempt(self) -> Attempt:
        return self.request.attempt


class PrefillScheduler:
    """First come, first served, several prompts side by side in one chunk when they fit."""

    def __init__(
        self,
        node: Node,
        addresses: Addresses,
        cache: PrefixCache,
        hasher: PageHasher,
        limits: PrefillLimits,
    ) -> None:
        """`addresses`: this node's own, told to owners of pages."""
        self._node = node
        self._cache = cache
        self._hasher = hasher
        self._limits = limits
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._num_sequences = 0
        self._steps: deque[list[tuple[Job, Slice]]] = deque()
        """Under way, the oldest first."""
        self._sending = Sending(cache)
        self._counters = Counters()
        self._fetching = Fetching(
            node, addresses, cache, hasher, self._counters, limits.fetch_timeout_s
        )

    def handle(self, event: Event, now: float) -> list[Instruction]:
        if isinstance(event, Prefill):
            return self._enqueue(event, now)
        if isinstance(event, Cancel):
            return self._drop(event.attempt, now)
        if isinstance(event, PagesSent):
            return self._sent(event, now)
        if isinstance(event, Fetch):
            return self._fetching.serve(event)
        if isinstance(event, PagesArrived):
            num_tokens = self._fetching.arrived(event.transfer, event.num_pages, now)
            return self._fetched(event.transfer, num_tokens)
        if isinstance(event, PagesReceived):
            return self._fetched(event.transfer, self._fetching.received(event.transfer, now))
        if isinstance(event, FetchRefused):
            return self._fetching.give_up(event.attempt, now)
        if isinstance(event, ReceiveFailed):
            return self._fetching.failed(event.transfer, now)
        return []

    def next_batch(self, now: float) -> tuple[list[Slice], list[Instruction]]:
        assert len(self._steps) < 2, "two steps are under way"
        instructions = self._fetching.expire(now) + self._admit(now)
        budget = self._limits.chunk_tokens
        step: list[tuple[Job, Slice]] = []
        for job in self._running:
            if budget == 0:
                break
            assert job.sequence is not None
            if job.attempt in self._fetching or not job.sequence.has_chunk:
                continue
            part = job.sequence.next_slice(budget, position=len(step))
            budget -= len(part.token_ids)
            step.append((job, part))
            instructions += self._stream(job, part)
        if step:
            self._steps.append(step)
        return [part for _, part in step], instructions

    def finish(self, sampled: Seq[Sampled | None], now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        for (job, part), first in zip(self._steps.popleft(), sampled, strict=True):
            if job.sequence is None:  # it was dropped while the step was under way
                continue
            job.sequence.computed(part)
            self._counters.computed_tokens += len(part.token_ids)
            full_pages = job.sequence.num_computed // self._hasher.page_size
            self._cache.commit(job.sequence.lease, job.hashes[:full_pages], now)
            if first is not None:
                instructions.append(Send(job.request.reply_address, self._done(job, first)))
                self._leave(job)
        return instructions

    def abandon(self, failed: Collection[int], reason: str, now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        step = self._steps[0]
        for job in [step[i][0] for i in failed if step[i][0].sequence is not None]:
            instructions += self._drop(job.attempt, now)
            instructions.append(self._failure(job.request, reason, "node"))
        step[:] = [part for i, part in enumerate(step) if i not in failed]
        return instructions

    def load(self) -> Load:
        waiting = sum(len(job.tokens) for job in self._waiting)
        running = sum(job.sequence.num_uncomputed for job in self._running if job.sequence)
        return self._counters.load(
            "prefill",
            self._cache,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            queued_tokens=waiting + running - self._fetching.num_tokens,
        )

    def _enqueue(self, request: Prefill, now: float) -> list[Instruction]:
        instructions = self._drop(request.attempt, now)
        tokens = tokens_from_bytes(request.tokens)
        num_pages = self._hasher.num_pages(len(tokens))
        if num_pages > self._cache.num_pages:
            reason = f"the prompt needs {num_pages} pages, this node has {self._cache.num_pages}"
            return [*instructions, self._failure(request, reason, "node")]
        if len(self._waiting) >= self._limits.max_waiting:
            reason = f"{len(self._waiting)} prompts wait already"
            return [*instructions, self._failure(request, reason, "busy")]
        hashes = self._hasher.hashes(tokens, request.namespace)
        self._waiting.append(Job(request, tokens, hashes, request.skip_pages))
        return instructions

    def _admit(self, now: float) -> list[Instruction]:
        """In order of arrival, but a prompt waits for pages that another one computes now, and an
        attempt that came again for the ends of what it sent before."""
        instructions: list[Instruction] = []
        for job in list(islice(self._waiting, MAX_LOOKED_AT)):
            if len(self._running) == self._limits.max_running:
                break
            if job.attempt in self._sending:
                continue
            reusable = self._hasher.reusable(job.hashes, len(job.tokens))
            computing = [running.hashes for running in self._running]
            if next_page_is_coming(self._cache, reusable, computing):
                continue
            num_pages = self._hasher.num_pages(len(job.tokens))
            lease = self._cache.acquire(reusable, num_pages, now, job.request.namespace)
            if lease is None:
                break
            self._waiting.remove(job)
            num_cached = lease.num_cached_pages * self._hasher.page_size
            self._num_sequences += 1
            job.sequence = Sequence(
                job.tokens, lease, job.request.sampling, num_cached, self._num_sequences
            )
            self._running.append(job)
            self._counters.started(num_cached)
            instructions += self._send(job, lease.num_cached_pages)
            instructions += self._fetching.begin(job.request, job.sequence, reusable, now)
        return instructions

    def _fetched(self, transfer: Attempt, num_tokens: int) -> list[Instruction]:
        if num_tokens == 0:
            return []
        (job,) = [job for job in self._running if job.attempt == transfer]
        assert job.sequence is not None
        job.fetched_tokens += num_tokens
        return self._send(job, job.sequence.num_computed // self._hasher.page_size)

    def _send(self, job: Job, num_pages: int) -> list[Instruction]:
        """The first `num_pages` pages are in the pool."""
        pages, offset = self._hand_over(job, num_pages)
        if not pages:
            return []
        return [SendPages(job.request.data_addresses, job.attempt, pages, offset)]

    def _stream(self, job: Job, part: Slice) -> list[Instruction]:
        """A step will complete the pages that end within `part`; the last one by the last part."""
        is_last = part.sampling is not None
        end = part.start + len(part.token_ids)
        pages, offset = self._hand_over(
            job, len(part.pages) if is_last else end // self._hasher.page_size
        )
        if not pages:
            return []
        return [StreamPages(job.request.data_addresses, job.attempt, pages, offset)]

    def _hand_over(self, job: Job, num_pages: int) -> tuple[list[int], int]:
        """What of the first `num_pages` pages decode neither has nor was sent, and its offset in
        the transfer. It counts as sent now; [] if there is no such page."""
        assert job.sequence is not None
        first = job.num_handed_pages
        pages = job.sequence.lease.pages[first:num_pages]
        if pages:
            job.num_handed_pages = num_pages
            self._sending.begin(job.attempt, job.request.reply_address)
            self._counters.pages_sent += len(pages)
        return pages, first - job.request.skip_pages

    def _done(self, job: Job, first: Sampled) -> PrefillDone:
        assert job.sequence is not None
        cached_tokens = job.sequence.lease.num_cached_pages * self._hasher.page_size
        return PrefillDone(
            attempt=job.attempt,
            first_tokens=list(first.tokens),
            cached_tokens=cached_tokens + job.fetched_tokens,
            node=self._node,
            fetched_tokens=job.fetched_tokens,
            first_logprobs=list(first.logprobs),
        )

    def _sent(self, event: PagesSent, now: float) -> list[Instruction]:
        if event.is_fetch:
            self._fetching.sent(event)
            return []
        reply_address = self._sending.ended(event.transfer)
        if not event.error or not reply_address:
            return []
        self._counters.transfer_failures += 1
        failed = Failed(event.transfer, event.error, "node", self._node)
        return [*self._drop(event.transfer, now), Send(reply_address, failed)]

    def _drop(self, attempt: Attempt, now: float) -> list[Instruction]:
        """Gives up this attempt and every older one of its request; aborts before it releases."""
        instructions: list[Instruction] = []
        for job in [j for j in self._waiting if j.attempt.superseded_by(attempt)]:
            self._waiting.remove(job)
        for job in [j for j in self._running if j.attempt.superseded_by(attempt)]:
            instructions += self._fetching.give_up(job.attempt, now)
            self._leave(job)
        return instructions + self._sending.cancel(attempt)

    def _leave(self, job: Job) -> None:
        """It is computed, or nobody wants it any more."""
        assert job.sequence is not None
        self._running.remove(job)
        self._sending.leave(job.attempt, job.sequence.lease)
        job.sequence = None

    def _failure(self, request: Prefill, reason: str, kind: FailureKind) -> Instruction:
        return Send(request.reply_address, Failed(request.attempt, reason, kind, self._node))

"""What a prefill node does next. Pure: time comes in, instructions and slices go out.

A job's life:  waiting → fetching → running (chunk by chunk, finished pages sent after each) → gone.
Only a job that is told of an owner fetches, and only what is not cached here.
Pages are acquired when a job starts to run and released when its last page is handed to the
transport, which copies it out of the pool at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice

from engine.cache import PrefixCache
from engine.request import Sequence, Slice
from node.counters import Counters
from node.fetching import FETCH_TIMEOUT_S, Fetching
from node.instructions import (
    Event,
    Instruction,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    Send,
    SendPages,
)
from node.shared_prefix import MAX_LOOKED_AT, next_page_is_coming
from protocol.hashing import PageHash, PageHasher, tokens_from_bytes
from protocol.ids import Attempt, Node
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
    fetched_tokens: int = 0

    @property
    def attempt(self) -> Attempt:
        return self.request.attempt


class PrefillScheduler:
    """First come, first served, several prompts side by side in one chunk when they fit."""

    def __init__(
        self,
        node: Node,
        addresses: tuple[str, str],
        cache: PrefixCache,
        hasher: PageHasher,
        limits: PrefillLimits,
    ) -> None:
        """`addresses`: this node's own control and data address, told to owners of pages."""
        self._node = node
        self._cache = cache
        self._hasher = hasher
        self._limits = limits
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._batch: list[tuple[Job, Slice]] = []
        self._sends: dict[Attempt, tuple[str, int]] = {}  # reply address, sends under way
        self._counters = Counters()
        self._fetching = Fetching(
            node, addresses, cache, hasher, self._counters, limits.fetch_timeout_s
        )

    def handle(self, event: Event, now: float) -> list[Instruction]:
        if isinstance(event, Prefill):
            return self._enqueue(event)
        if isinstance(event, Cancel):
            return self._drop(event.attempt)
        if isinstance(event, PagesSent):
            return self._sent(event)
        if isinstance(event, Fetch):
            return self._fetching.serve(event)
        if isinstance(event, PagesReceived):
            return self._pages_fetched(event.transfer, now)
        if isinstance(event, FetchRefused):
            return self._fetching.give_up(event.attempt)
        if isinstance(event, ReceiveFailed):
            return self._fetching.failed(event.transfer)
        return []

    def next_batch(self, now: float) -> tuple[list[Slice], list[Instruction]]:
        instructions = self._fetching.expire(now) + self._admit(now)
        budget = self._limits.chunk_tokens
        self._batch = []
        for job in self._running:
            if budget == 0:
                break
            if job.attempt in self._fetching:
                continue
            assert job.sequence is not None
            part = job.sequence.next_slice(budget)
            budget -= len(part.token_ids)
            self._batch.append((job, part))
        return [part for _, part in self._batch], instructions

    def finish(self, tokens: Seq[int | None], now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        for (job, part), token in zip(self._batch, tokens, strict=True):
            assert job.sequence is not None
            job.sequence.num_computed += len(part.token_ids)
            self._counters.computed_tokens_total += len(part.token_ids)
            num_computed = job.sequence.num_computed
            full_pages = num_computed // self._hasher.page_size
            self._cache.commit(job.sequence.lease, job.hashes[:full_pages], now)
            if token is None:
                instructions += self._hand_over(job, full_pages)
                continue
            instructions += self._hand_over(job, len(job.sequence.lease.pages))
            instructions.append(Send(job.request.reply_address, self._done(job, token)))
            self._running.remove(job)
            self._cache.release(job.sequence.lease)
        self._batch = []
        return instructions

    def abandon(self, failed: Collection[int], reason: str, now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        for job in [self._batch[i][0] for i in failed]:
            instructions += self._drop(job.attempt)
            instructions.append(self._failure(job.request, reason, "node"))
        self._batch = [part for i, part in enumerate(self._batch) if i not in failed]
        return instructions

    def load(self) -> Load:
        waiting = sum(len(job.tokens) for job in self._waiting)
        running = sum(job.sequence.num_uncomputed for job in self._running if job.sequence)
        return self._counters.load(
            self._cache,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            queued_tokens=waiting + running - self._fetching.num_tokens,
        )

    def _enqueue(self, request: Prefill) -> list[Instruction]:
        instructions = self._drop(request.attempt)
        tokens = tokens_from_bytes(request.tokens)
        num_pages = self._hasher.num_pages(len(tokens))
        if num_pages > self._cache.num_pages:
            reason = f"the prompt needs {num_pages} pages, this node has {self._cache.num_pages}"
            return [*instructions, self._failure(request, reason, "node")]
        if len(self._waiting) >= self._limits.max_waiting:
            reason = f"{len(self._waiting)} prompts wait already"
            return [*instructions, self._failure(request, reason, "busy")]
        hashes = self._hasher.hashes(tokens, request.cache_salt)
        self._waiting.append(Job(request, tokens, hashes, request.skip_pages))
        return instructions

    def _admit(self, now: float) -> list[Instruction]:
        """In order of arrival, but a prompt waits for pages that another one computes now."""
        instructions: list[Instruction] = []
        for job in list(islice(self._waiting, MAX_LOOKED_AT)):
            if len(self._running) == self._limits.max_running:
                break
            reusable = self._hasher.reusable(job.hashes, len(job.tokens))
            computing = [running.hashes for running in self._running]
            if next_page_is_coming(self._cache, reusable, computing):
                continue
            num_pages = self._hasher.num_pages(len(job.tokens))
            lease = self._cache.acquire(reusable, num_pages, now, job.request.cache_salt)
            if lease is None:
                break
            self._waiting.remove(job)
            num_cached = lease.num_cached_pages * self._hasher.page_size
            job.sequence = Sequence(job.tokens, lease, job.request.sampling, num_cached)
            self._running.append(job)
            self._counters.started(num_cached)
            instructions += self._hand_over(job, lease.num_cached_pages)
            instructions += self._fetching.begin(job.request, job.sequence, reusable, now)
        return instructions

    def _pages_fetched(self, transfer: Attempt, now: float) -> list[Instruction]:
        fetched_tokens = self._fetching.received(transfer, now)
        if fetched_tokens == 0:
            return []
        (job,) = [job for job in self._running if job.attempt == transfer]
        assert job.sequence is not None
        job.fetched_tokens = fetched_tokens
        return self._hand_over(job, job.sequence.num_computed // self._hasher.page_size)

    def _hand_over(self, job: Job, num_pages: int) -> list[Instruction]:
        """Sends what of the first `num_pages` pages decode neither has nor was sent."""
        assert job.sequence is not None
        first = job.num_handed_pages
        if num_pages <= first:
            return []
        job.num_handed_pages = num_pages
        reply_address, under_way = self._sends.get(job.attempt, (job.request.reply_address, 0))
        self._sends[job.attempt] = (reply_address, under_way + 1)
        self._counters.pages_sent_total += num_pages - first
        pages = job.sequence.lease.pages[first:num_pages]
        offset = first - job.request.skip_pages
        return [SendPages(job.request.data_address, job.attempt, pages, offset)]

    def _done(self, job: Job, first_token: int) -> PrefillDone:
        assert job.sequence is not None
        cached_tokens = job.sequence.lease.num_cached_pages * self._hasher.page_size
        return PrefillDone(
            attempt=job.attempt,
            first_token=first_token,
            cached_tokens=cached_tokens + job.fetched_tokens,
            node=self._node,
            fetched_tokens=job.fetched_tokens,
        )

    def _sent(self, event: PagesSent) -> list[Instruction]:
        if event.is_fetch:
            self._fetching.sent(event)
            return []
        reply_address, under_way = self._sends.pop(event.transfer, ("", 0))
        if not reply_address:
            return []  # an earlier failure of this transfer was reported already
        if not event.error:
            if under_way > 1:
                self._sends[event.transfer] = (reply_address, under_way - 1)
            return []
        self._counters.transfer_failures_total += 1
        failed = Failed(event.transfer, event.error, "node", self._node)
        return [*self._drop(event.transfer), Send(reply_address, failed)]

    def _drop(self, attempt: Attempt) -> list[Instruction]:
        """Gives up this attempt and every older one of its request; aborts before it releases."""
        instructions: list[Instruction] = []
        for job in [j for j in self._waiting if j.attempt.superseded_by(attempt)]:
            self._waiting.remove(job)
        for job in [j for j in self._running if j.attempt.superseded_by(attempt)]:
            assert job.sequence is not None
            instructions += self._fetching.give_up(job.attempt)
            self._running.remove(job)
            self._cache.release(job.sequence.lease)
        return instructions

    def _failure(self, request: Prefill, reason: str, kind: FailureKind) -> Instruction:
        return Send(request.reply_address, Failed(request.attempt, reason, kind, self._node))

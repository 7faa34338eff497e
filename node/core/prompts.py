"""`Prompts`: the jobs of a node, from their arrival until they leave. Pure.

    waiting ──admit──► fetching ──► computed chunk by chunk ──► the sink takes what follows ──► gone
       ▲          └──► received: its sink knows ──────────────────────────┘            │
       └──────────────────────────── gave way: no pages are left ──────────────────────┘

Jobs are admitted in the order of their arrival. Admission takes the pages of the tokens that a job
has, if some are left for everybody to grow; a job that finds no room costs nobody anything.
Admitted ones share the steps as `chunk_sizes` says: short rests go first, and none is left out for
long.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from engine.batches.sequence import Sampled, Sequence
from engine.cache.prefix_cache import PrefixCache
from node.core.fetching import Fetching
from node.core.instructions import CopyPages, EndSequence, Instruction, SendMessage
from node.core.job import Job, PlannedSlice, Sink
from node.core.shared_prefix import MAX_LOOKED_AT, next_page_is_coming
from node.load.counters import Counters
from protocol.admission import admission_tokens, chunk_sizes
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Attempt, Node
from protocol.messages import Failed, FailureKind
from protocol.timelines.node_spans import SpanRecorder

PATIENCE_S = 2.0
"""How long a prompt for another node waits for pages before an answer here makes room for it."""

ChainsComing = Callable[[], Iterable[Seq[PageHash]]]


@dataclass(frozen=True)
class PromptLimits:
    """How many jobs a node takes."""

    max_running: int
    """The most jobs of one kind of work that are admitted at the same time. Each kind has places of
    its own: else two nodes could fill all of theirs with answers whose prompts wait for a place at
    the other."""
    max_waiting: int


class Prompts:
    """Owns the order of jobs and their sequences. It does not know what the jobs are for."""

    def __init__(
        self,
        node: Node,
        cache: PrefixCache,
        hasher: PageHasher,
        counters: Counters,
        fetching: Fetching,
        limits: PromptLimits,
    ) -> None:
        self._node = node
        self._cache = cache
        self._hasher = hasher
        self._counters = counters
        self._fetching = fetching
        self._limits = limits
        self._waiting: deque[Job[Any]] = deque()
        self._admitted: list[Job[Any]] = []
        """The oldest first."""
        self._num_admitted: Counter[Sink[Any]] = Counter()
        """How many admitted jobs each sink has; sinks are told apart by identity."""
        self._blocked: Job[Any] | None = None
        """The job that found no room last."""
        self._blocked_since = 0.0
        self.busy_since: float | None = None
        """When the node looked for messages last, if it has been at steps since; None if it was
        idle, and so took what came at once."""
        self._num_arrived = 0
        self._num_sequences = 0

    # Arrival and admission

    def enqueue(self, job: Job[Any], now: float) -> list[Instruction]:
        """Takes a new job; or returns its failure if it can never fit, or if too many wait."""
        num_pages = self._hasher.num_pages(job.max_tokens)
        if num_pages > self._cache.num_pages:
            reason = (
                f"this request needs {num_pages} pages, "
                f"{self._node.name} has {self._cache.num_pages}"
            )
            return [self.failure(job, reason, job.sink.refusal_kind)]
        if len(self._waiting) >= self._limits.max_waiting:
            reason = f"{len(self._waiting)} requests wait already at {self._node.name}"
            return [self.failure(job, reason, "busy")]
        inbox_s = 0.0 if self.busy_since is None else now - self.busy_since
        job.recorder = SpanRecorder(now, inbox_s)
        self._num_arrived += 1
        job.arrival = self._num_arrived
        job.hashes = self._hasher.hashes(job.tokens, job.namespace)
        self._waiting.append(job)
        return []

    def admit(self, chains_coming: ChainsComing, now: float) -> list[Instruction]:
        """Admits waiting jobs, in the order of arrival, as long as there is room.

        A job is left waiting while a page that it lacks is coming for another job, so that no page
        travels or is computed twice. `chains_coming` tells the pages that other nodes send for
        answers.
        """
        instructions: list[Instruction] = []
        for job in list(islice(self._waiting, MAX_LOOKED_AT)):
            if self._has_no_place(job) or not job.sink.may_begin(job):
                continue
            reusable = job.hashes[: job.num_reusable // self._hasher.page_size]
            if next_page_is_coming(self._cache, reusable, self._chains(job, chains_coming)):
                continue
            if not self._take_pages(job, reusable, now):
                self._note_blocked(job, now)
                break  # who comes later must not take the pages that this one waits for
            instructions += self._begin(job, reusable, now)
        return instructions

    def should_make_room(self, now: float) -> bool:
        """Returns whether an answer that expects pages from elsewhere should give way to a prompt
        of another node, which has waited for room too long. That node may be waiting for room for
        an answer in just the same way."""
        job = self._blocked
        is_waiting = job is not None and job in self._waiting and not job.sink.waits_for_received
        return is_waiting and now - self._blocked_since >= PATIENCE_S

    def _note_blocked(self, job: Job[Any], now: float) -> None:
        if job is not self._blocked:
            self._blocked, self._blocked_since = job, now

    def _has_no_place(self, job: Job[Any]) -> bool:
        return self._num_admitted[job.sink] >= self._limits.max_running

    def _take_pages(self, job: Job[Any], reusable: Seq[PageHash], now: float) -> bool:
        """Gives a waiting job its pages and its sequence. Returns False if there is no room."""
        num_pages = self._hasher.num_pages(len(job.tokens))
        # Room for all who are admitted to grow a little: else the next steps would make the
        # youngest give way, and its work would have been for nothing.
        num_spare_pages = self._headroom() + self._admission_pages(job) - num_pages
        held = self._cache.acquire(
            reusable, num_pages, now, job.namespace, num_spare_pages, job.tokens
        )
        if held is None:
            return False
        num_cached = held.num_cached_pages * self._hasher.page_size
        self._num_sequences += 1
        scores_from = job.prompt_logprobs.lacking_from if job.is_computed_here else None
        job.sequence = Sequence(
            job.tokens, held, job.sampling, num_cached, self._num_sequences, scores_from
        )
        self._waiting.remove(job)
        insort(self._admitted, job, key=lambda j: j.arrival)
        self._num_admitted[job.sink] += 1
        return True

    def _begin(self, job: Job[Any], reusable: Seq[PageHash], now: float) -> list[Instruction]:
        assert job.sequence is not None
        if not job.gave_way:
            job.cached_tokens = job.sequence.num_computed if job.is_computed_here else 0
            self._counters.started(job.cached_tokens)
        job.spent("paused" if job.gave_way else "admission", now)
        instructions = job.sink.admitted(job, now)
        if job.is_computed_here:
            instructions += self._fetching.begin(job, reusable, now)
        return instructions

    def _chains(self, job: Job[Any], chains_coming: ChainsComing) -> Iterator[Seq[PageHash]]:
        if job.sink.waits_for_received:
            yield from chains_coming()
        yield from self._fetching.chains()
        if job.is_computed_here:
            yield from (other.hashes for other in self._admitted if other.is_filling)

    # Computing

    def add_chunks(
        self, step: list[PlannedSlice], max_tokens: int, now: float
    ) -> list[Instruction]:
        """Adds chunks of prompts to a step, up to `max_tokens` tokens in all, as `chunk_sizes`
        shares them out."""
        copies = CopyPages([], [])
        instructions: list[Instruction] = []
        due = [job for job in self._admitted if self._is_due(job)]
        for job, size in zip(due, chunk_sizes(list(map(_num_left, due)), max_tokens), strict=True):
            if size == 0:
                continue
            assert job.sequence is not None
            if job.sequence.num_planned == job.sequence.num_computed:
                job.spent("step_wait", now)
            if not job.sequence.has_begun:
                self._copy_beginning(job, copies, now)
            planned = PlannedSlice.of(job, size, position=len(step))
            step.append(planned)
            instructions += job.sink.before_chunk(job, planned.part)
        return [copies, *instructions] if copies.sources else instructions

    def _is_due(self, job: Job[Any]) -> bool:
        """Returns whether a chunk of an admitted job could be computed now."""
        assert job.sequence is not None
        has_chunk = job.is_computed_here and job.sequence.has_chunk
        return has_chunk and job.attempt not in self._fetching

    def _copy_beginning(self, job: Job[Any], copies: CopyPages, now: float) -> None:
        """The first page that a prompt lacks: if a cached one begins alike, that is copied, and
        only what follows is computed.

        This waits until the prompt's turn to be computed has come: whatever was fetched of it is
        here, and nobody takes the page that is copied before the copy is made.
        """
        sequence = job.sequence
        assert sequence is not None
        beginning = self._cache.closest(sequence.held, job.num_reusable, now)
        if beginning is None:
            return
        copies.sources.append(beginning.page)
        copies.destinations.append(sequence.held.pages[sequence.held.num_committed_pages])
        sequence.num_computed += beginning.num_tokens
        if not job.gave_way:
            self._counters.copied(beginning.num_tokens, is_first_hit=job.cached_tokens == 0)
            job.cached_tokens += beginning.num_tokens

    def computed(
        self, planned: PlannedSlice, new: Sampled | None, device_free_at: float, now: float
    ) -> None:
        """Notes that the step of this slice, the oldest one under way, is over; until
        `device_free_at` the device was at the one before it. Keeps the logprobs
        of the prompt in `new`, and makes the pages findable that the prompt has completed. Sampled
        tokens are the sink's business."""
        planned.sequence.computed(planned.part)
        if new is not None and new.prompt_logprobs is not None:
            planned.job.prompt_logprobs.add(new.prompt_logprobs)
        if planned.is_given:
            num_tokens = len(planned.part.token_ids)
            self._counters.computed_tokens += num_tokens
            if planned.job.recorder is not None:
                planned.job.recorder.end_compute(device_free_at, now, num_tokens)
            self.commit(planned.job, now)

    def commit(self, job: Job[Any], now: float) -> None:
        """Makes the full pages of what is computed of a job findable in the cache."""
        assert job.sequence is not None
        page_size = self._hasher.page_size
        num_pages = job.sequence.num_computed // page_size
        if num_pages > len(job.hashes):  # an answer that grew: hashing goes on behind its prompt
            tokens = job.tokens[: num_pages * page_size]
            job.hashes = self._hasher.hashes(tokens, job.namespace, known=job.hashes)
        self._cache.commit(job.sequence.held, job.hashes[:num_pages], now)

    def fetched(self, attempt: Attempt, num_tokens: int, now: float) -> list[Instruction]:
        """Notes that `num_tokens` more tokens of an admitted job have come from their owner."""
        if num_tokens == 0:
            return []
        (job,) = [job for job in self._admitted if job.attempt == attempt]
        job.spent("fetch", now)
        job.fetched_tokens += num_tokens
        job.cached_tokens += num_tokens
        return job.sink.fetched(job)

    # Ends

    def leave(self, job: Job[Any], now: float) -> list[Instruction]:
        """Ends a job. The instructions stop all writing into its pages, and must be carried out
        before the pages are used again. Steps under way may still write there: the device computes
        them before any later step."""
        sequence = job.sequence
        assert sequence is not None
        # Abort first: the pages may be reused as soon as the sink has released them.
        instructions = self._fetching.give_up(job.attempt, now)
        self._cache.keep_tail(sequence.held, sequence.num_computed, now)
        self._admitted.remove(job)
        self._num_admitted[job.sink] -= 1
        job.sequence = None
        instructions += job.sink.left(job, sequence.held)
        if sequence.has_begun:  # steps under way may have slices of it
            instructions.append(EndSequence(sequence.sequence_id))
        return instructions

    def give_way(self, job: Job[Any], now: float) -> list[Instruction]:
        """Takes the pages of a job back and lets it wait again, at its old place. From then on all
        that it has is computed here, and nothing is fetched: its old fetch may still arrive."""
        self._counters.preemptions += 1
        self.commit(job, now)
        instructions = self.leave(job, now)
        if job.recorder is None:
            job.recorder = SpanRecorder(now)
        else:  # before its first tokens
            job.spent("step_wait" if job.is_computed_here else "handover", now)
        job.is_computed_here = job.gave_way = True
        job.fetch = None
        insort(self._waiting, job, key=lambda j: j.arrival)
        return instructions

    def drop(self, attempt: Attempt, now: float) -> list[Instruction]:
        """Gives up all jobs of this attempt and of older ones of its request."""
        for job in [j for j in self._waiting if j.attempt.superseded_by(attempt)]:
            self._waiting.remove(job)
        leaving = [j for j in self._admitted if j.attempt.superseded_by(attempt)]
        return [instruction for job in leaving for instruction in self.leave(job, now)]

    def attempts_of(self, reply_address: str) -> list[Attempt]:
        """Returns the attempts of all jobs that were asked for from this address."""
        jobs = chain(self._waiting, self._admitted)
        return [job.attempt for job in jobs if job.reply_address == reply_address]

    def failure(self, job: Job[Any], reason: str, kind: FailureKind) -> SendMessage:
        """Returns the message that tells whoever asked for the job that this node failed it."""
        return SendMessage(job.reply_address, Failed(job.attempt, reason, kind, self._node))

    # Sizes

    @property
    def num_running(self) -> int:
        """The number of admitted jobs."""
        return len(self._admitted)

    @property
    def num_waiting(self) -> int:
        """The number of jobs that wait to be admitted."""
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        """The number of prompt tokens that this node still has to compute. Tokens that are being
        fetched do not count."""
        waiting = sum(len(job.tokens) for job in self._waiting if job.is_computed_here)
        admitted = sum(
            job.sequence.num_uncomputed for job in self._admitted if job.is_filling and job.sequence
        )
        return waiting + admitted - self._fetching.num_tokens

    @property
    def promised_pages(self) -> int:
        """How many pages should be left for the jobs that wait, and for admitted ones to grow."""
        return self._headroom() + sum(map(self._admission_pages, self._waiting))

    def _headroom(self) -> int:
        """Returns how many more pages the admitted jobs should find when they grow."""
        return sum(
            self._admission_pages(job) - len(job.sequence.held.pages)
            for job in self._admitted
            if job.sequence is not None
        )

    def _admission_pages(self, job: Job[Any]) -> int:
        """Returns how many pages should be there for a job when it is admitted: those of its
        tokens, and some to grow."""
        return self._hasher.num_pages(admission_tokens(len(job.tokens), job.max_tokens))


def _num_left(job: Job[Any]) -> int:
    assert job.sequence is not None
    return job.sequence.num_unplanned

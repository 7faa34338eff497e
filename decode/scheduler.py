"""What a decode node does next. Pure: time comes in, instructions and slices go out.

A request's life:

    waiting ──admit──► receiving ──pages and first token here──► running ──► gone
                 └──── (no prefill node: fetches and computes the prompt itself) ──┘

Admission reserves every page the answer can need, so a running request never runs out of pages,
and a request that finds no room costs nobody anything. Prompts that this node computes itself
share the steps with running answers, chunk by chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import islice

from decode.outbox import Outbox
from engine.cache import PrefixCache
from engine.request import Sequence, Slice
from node.counters import Counters
from node.fetching import FETCH_TIMEOUT_S, Fetching
from node.instructions import (
    AbortTransfer,
    Event,
    ExpectPages,
    Instruction,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    Send,
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
    Generate,
    Load,
    Prefill,
    PrefillDone,
)


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds of a decode node; tokens, requests and seconds."""

    chunk_tokens: int
    max_running: int
    max_waiting: int
    receive_timeout_s: float
    fetch_timeout_s: float = FETCH_TIMEOUT_S


@dataclass(eq=False)
class Answer:
    """One request. `sequence` is None while it waits for pages."""

    request: Generate
    prompt: list[int]
    hashes: list[PageHash]
    sequence: Sequence | None = None
    cached_tokens: int = 0
    fetched_tokens: int = 0
    num_expected_pages: int = 0
    pages_are_here: bool = False
    first_token: int | None = None
    receive_deadline: float = 0.0
    generated: list[int] = field(default_factory=list)

    @property
    def attempt(self) -> Attempt:
        return self.request.attempt


class DecodeScheduler:
    """Continuous batching: requests join and leave between any two steps."""

    def __init__(
        self,
        node: Node,
        addresses: tuple[str, str],
        cache: PrefixCache,
        hasher: PageHasher,
        limits: DecodeLimits,
    ) -> None:
        """`addresses`: this node's own control and data address, told to other nodes."""
        self._node = node
        self._control_address, self._data_address = addresses
        self._cache = cache
        self._hasher = hasher
        self._limits = limits
        self._waiting: deque[Answer] = deque()
        self._receiving: dict[Attempt, Answer] = {}
        self._running: list[Answer] = []
        self._batch: list[tuple[Answer, Slice]] = []
        self._outbox = Outbox(node)
        self._counters = Counters()
        self._fetching = Fetching(
            node, addresses, cache, hasher, self._counters, limits.fetch_timeout_s
        )

    def handle(self, event: Event, now: float) -> list[Instruction]:
        if isinstance(event, Generate):
            return self._enqueue(event)
        if isinstance(event, Cancel):
            return self._drop(event.attempt)
        if isinstance(event, PrefillDone):
            return self._prefill_done(event, now)
        if isinstance(event, PagesReceived):
            return self._pages_received(event, now)
        if isinstance(event, ReceiveFailed):
            if event.transfer in self._fetching:
                return self._fetching.failed(event.transfer)
            return self._receive_failed(event.transfer, event.reason)
        if isinstance(event, Failed):
            return self._prefill_failed(event)
        if isinstance(event, Fetch):
            return self._fetching.serve(event)
        if isinstance(event, FetchRefused):
            return self._fetching.give_up(event.attempt)
        if isinstance(event, PagesSent):
            self._fetching.sent(event)  # it sends nothing else
        return []

    def next_batch(self, now: float) -> tuple[list[Slice], list[Instruction]]:
        instructions = self._expire(now) + self._fetching.expire(now) + self._admit(now)
        self._batch = list(self._plan())
        return [part for _, part in self._batch], instructions

    def finish(self, tokens: Seq[int | None], now: float) -> list[Instruction]:
        for (answer, part), token in zip(self._batch, tokens, strict=True):
            assert answer.sequence is not None
            answer.sequence.num_computed += len(part.token_ids)
            if not answer.generated:
                self._counters.computed_tokens_total += len(part.token_ids)
                self._commit(answer, now)
            if token is not None:
                self._produced(answer, token, now)
        self._batch = []
        return self._outbox.flush()

    def abandon(self, failed: Collection[int], reason: str, now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        for answer in [self._batch[i][0] for i in failed]:
            instructions += self._drop(answer.attempt)
            instructions.append(self._failure(answer.request, reason, "node"))
        self._batch = [part for i, part in enumerate(self._batch) if i not in failed]
        return instructions

    def load(self) -> Load:
        waiting = sum(len(a.prompt) for a in self._waiting if not a.request.prefill_address)
        running = sum(
            a.sequence.num_uncomputed for a in self._running if a.sequence and not a.generated
        )
        return self._counters.load(
            self._cache,
            num_running=len(self._running) + len(self._receiving),
            num_waiting=len(self._waiting),
            queued_tokens=waiting + running - self._fetching.num_tokens,
        )

    # Admission

    def _enqueue(self, request: Generate) -> list[Instruction]:
        instructions = self._drop(request.attempt)
        prompt = tokens_from_bytes(request.tokens)
        answer = Answer(request, prompt, [])
        num_pages = self._pages_needed(answer)
        if num_pages > self._cache.num_pages:
            reason = (
                f"prompt and answer need {num_pages} pages, "
                f"decode node {self._node.name} has {self._cache.num_pages}"
            )
            return [*instructions, self._failure(request, reason, "request")]
        if len(self._waiting) >= self._limits.max_waiting:
            reason = f"{len(self._waiting)} requests wait already at {self._node.name}"
            return [*instructions, self._failure(request, reason, "busy")]
        answer.hashes = self._hasher.hashes(prompt, request.cache_salt)
        self._waiting.append(answer)
        return instructions

    def _admit(self, now: float) -> list[Instruction]:
        """In order of arrival, but a prompt that this node computes waits for pages that it
        computes for another one now."""
        instructions: list[Instruction] = []
        for answer in list(islice(self._waiting, MAX_LOOKED_AT)):
            if self._num_admitted() == self._limits.max_running:
                break
            reusable = self._hasher.reusable(answer.hashes, len(answer.prompt))
            computes_here = not answer.request.prefill_address
            if computes_here and next_page_is_coming(self._cache, reusable, self._computing()):
                continue
            lease = self._cache.acquire(
                reusable, self._pages_needed(answer), now, answer.request.cache_salt
            )
            if lease is None:
                break
            self._waiting.remove(answer)
            num_cached = lease.num_cached_pages * self._hasher.page_size
            answer.sequence = Sequence(
                list(answer.prompt), lease, answer.request.sampling, num_cached
            )
            self._counters.started(num_cached if computes_here else 0)
            if computes_here:
                answer.cached_tokens = num_cached
                self._running.append(answer)
                instructions += self._fetching.begin(answer.request, answer.sequence, reusable, now)
            else:
                instructions += self._ask_for_prefill(answer, now)
        return instructions

    def _computing(self) -> list[list[PageHash]]:
        """Pages of the prompts that this node computes now."""
        return [answer.hashes for answer in self._running if not answer.generated]

    def _ask_for_prefill(self, answer: Answer, now: float) -> list[Instruction]:
        assert answer.sequence is not None
        lease, request = answer.sequence.lease, answer.request
        pages = lease.pages[lease.num_cached_pages : self._hasher.num_pages(len(answer.prompt))]
        answer.num_expected_pages = len(pages)
        answer.receive_deadline = now + self._limits.receive_timeout_s
        self._receiving[answer.attempt] = answer
        prefill = Prefill(
            attempt=answer.attempt,
            tokens=request.tokens,
            cache_salt=request.cache_salt,
            sampling=request.sampling,
            skip_pages=lease.num_cached_pages,
            reply_address=self._control_address,
            data_address=self._data_address,
            fetch_node=request.fetch_node,
            fetch_address=request.fetch_address,
            fetch_pages=request.fetch_pages,
        )
        return [
            ExpectPages(answer.attempt, pages),
            Send(request.prefill_address, prefill),
        ]

    def _expire(self, now: float) -> list[Instruction]:
        late = [a.attempt for a in self._receiving.values() if now >= a.receive_deadline]
        instructions: list[Instruction] = []
        for attempt in late:
            reason = f"no prefill within {self._limits.receive_timeout_s:g} s"
            instructions += self._receive_failed(attempt, reason)
        return instructions

    # From prefill to running

    def _prefill_done(self, event: PrefillDone, now: float) -> list[Instruction]:
        answer = self._receiving.get(event.attempt)
        if answer is None:
            return []
        answer.first_token = event.first_token
        answer.cached_tokens = event.cached_tokens
        answer.fetched_tokens = event.fetched_tokens
        return self._join(answer, now)

    def _pages_received(self, event: PagesReceived, now: float) -> list[Instruction]:
        if event.transfer in self._fetching:
            self._pages_fetched(event.transfer, now)
            return []
        answer = self._receiving.get(event.transfer)
        if answer is None:
            return []
        answer.pages_are_here = True
        self._counters.pages_received_total += answer.num_expected_pages
        return self._join(answer, now)

    def _pages_fetched(self, transfer: Attempt, now: float) -> None:
        (answer,) = [answer for answer in self._running if answer.attempt == transfer]
        answer.fetched_tokens = self._fetching.received(transfer, now)
        answer.cached_tokens += answer.fetched_tokens

    def _join(self, answer: Answer, now: float) -> list[Instruction]:
        """Moves a request to the running batch once its pages and its first token are here."""
        if not answer.pages_are_here or answer.first_token is None:
            return []
        del self._receiving[answer.attempt]
        assert answer.sequence is not None
        answer.sequence.num_computed = len(answer.prompt)
        self._commit(answer, now)
        self._running.append(answer)
        self._produced(answer, answer.first_token, now)
        return self._outbox.flush()

    # Steps

    def _plan(self) -> Iterator[tuple[Answer, Slice]]:
        """One token of every running answer, then prompt chunks within the token budget."""
        prompts = []
        for answer in self._running:
            assert answer.sequence is not None
            if answer.generated:
                yield answer, answer.sequence.next_slice(1)
            elif answer.attempt not in self._fetching:
                prompts.append(answer)
        budget = self._limits.chunk_tokens
        for answer in prompts:
            assert answer.sequence is not None
            if budget == 0:
                break
            part = answer.sequence.next_slice(budget)
            budget -= len(part.token_ids)
            yield answer, part

    def _produced(self, answer: Answer, token: int, now: float) -> None:
        """A new token of a running answer: report it, and end the answer if it is the last."""
        assert answer.sequence is not None
        request = answer.request
        answer.generated.append(token)
        answer.sequence.tokens.append(token)
        self._counters.generated_tokens_total += 1
        finish, reported = "", [token]
        if request.max_new_tokens == 0:
            finish, reported = "length", []
        elif token in request.stop_token_ids:
            finish = "stop"
        elif len(answer.generated) == request.max_new_tokens:
            finish = "length"
        self._outbox.add(
            request.reply_address,
            answer.attempt,
            len(answer.generated) - 1,
            reported,
            finish,
            answer.cached_tokens,
            answer.num_expected_pages,
            answer.fetched_tokens,
        )
        if finish:
            self._running.remove(answer)
            self._commit(answer, now)
            self._cache.release(answer.sequence.lease)

    def _commit(self, answer: Answer, now: float) -> None:
        """Makes the full pages of what is computed findable; the answer's own at its end."""
        assert answer.sequence is not None
        page_size = self._hasher.page_size
        num_pages = answer.sequence.num_computed // page_size
        if num_pages > len(answer.hashes):
            answer.hashes = self._hasher.hashes(
                answer.sequence.tokens[: num_pages * page_size], answer.request.cache_salt
            )
        self._cache.commit(answer.sequence.lease, answer.hashes[:num_pages], now)

    # Ends

    def _receive_failed(self, attempt: Attempt, reason: str) -> list[Instruction]:
        """The pages did not come: the prefill node is to be avoided, not this one."""
        answer = self._receiving.get(attempt)
        if answer is None or answer.request.prefill_node is None:
            return []
        self._counters.transfer_failures_total += 1
        failed = Failed(attempt, reason, "node", answer.request.prefill_node)
        return [*self._drop(attempt), Send(answer.request.reply_address, failed)]

    def _prefill_failed(self, failed: Failed) -> list[Instruction]:
        answer = self._receiving.get(failed.attempt)
        if answer is None:
            return []
        return [*self._drop(failed.attempt), Send(answer.request.reply_address, failed)]

    def _drop(self, attempt: Attempt) -> list[Instruction]:
        """Gives up this attempt and every older one of its request; aborts before it releases."""
        instructions: list[Instruction] = []
        for answer in [a for a in self._waiting if a.attempt.superseded_by(attempt)]:
            self._waiting.remove(answer)
        for answer in [a for a in self._receiving.values() if a.attempt.superseded_by(attempt)]:
            assert answer.sequence is not None
            del self._receiving[answer.attempt]
            instructions.append(AbortTransfer(answer.attempt))
            instructions.append(Send(answer.request.prefill_address, Cancel(answer.attempt)))
            self._cache.release(answer.sequence.lease)
        for answer in [a for a in self._running if a.attempt.superseded_by(attempt)]:
            assert answer.sequence is not None
            instructions += self._fetching.give_up(answer.attempt)
            self._running.remove(answer)
            self._cache.release(answer.sequence.lease)
        return instructions

    def _failure(self, request: Generate, reason: str, kind: FailureKind) -> Instruction:
        return Send(request.reply_address, Failed(request.attempt, reason, kind, self._node))

    # Sizes

    def _num_admitted(self) -> int:
        return len(self._running) + len(self._receiving)

    def _pages_needed(self, answer: Answer) -> int:
        """Pages for prompt and answer, but for the last token, whose KV nobody needs."""
        return self._hasher.num_pages(
            len(answer.prompt) + max(1, answer.request.max_new_tokens) - 1
        )

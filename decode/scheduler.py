"""What a decode node does next. Pure: time comes in, instructions and slices go out.

A request's life:

    waiting ──admit──► receiving ──pages and first token here──► running ──► gone
       ▲         └──── (no prefill node: fetches and computes the prompt itself) ─┘ │
       └─────────────────────────── preempted: no pages are left ──────────────────┘

Admission takes the pages of the prompt, if some are left for everybody to grow. A request that
finds no room costs nobody anything. Prompts that this node computes itself share the steps with
running answers, chunk by chunk. So does a preempted request: its prompt is then all tokens that it
has, and its next one is the same as if it had not given way.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain, islice

from decode.answer import Answer
from decode.outbox import Outbox
from decode.receiving import Receiving
from decode.running import Running
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
)
from node.core.shared_prefix import MAX_LOOKED_AT, next_page_is_coming
from protocol.admission import admission_tokens
from protocol.hashing import PageHash, PageHasher, tokens_from_bytes
from protocol.ids import Addresses, Attempt, Node
from protocol.messages import (
    Cancel,
    Failed,
    FailureKind,
    Fetch,
    FetchRefused,
    Generate,
    Load,
    PrefillDone,
    TokenOut,
)


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds of a decode node; tokens, requests and seconds."""

    chunk_tokens: int
    max_running: int
    max_waiting: int
    receive_timeout_s: float
    fetch_timeout_s: float = FETCH_TIMEOUT_S


class DecodeScheduler:
    """Continuous batching: requests join and leave between any two steps."""

    def __init__(
        self,
        node: Node,
        addresses: Addresses,
        cache: PrefixCache,
        hasher: PageHasher,
        limits: DecodeLimits,
    ) -> None:
        """`addresses`: this node's own, told to other nodes."""
        self._node = node
        self._cache = cache
        self._hasher = hasher
        self._limits = limits
        self._waiting: deque[Answer] = deque()
        self._num_arrived = 0
        self._num_sequences = 0
        self._outbox = Outbox(node)
        self._counters = Counters()
        self._receiving = Receiving(
            addresses, cache, hasher, self._counters, limits.receive_timeout_s
        )
        self._fetching = Fetching(
            node, addresses, cache, hasher, self._counters, limits.fetch_timeout_s
        )
        self._running = Running(cache, hasher, self._fetching)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        if isinstance(event, Generate):
            return self._enqueue(event, now)
        if isinstance(event, Cancel):
            return self._drop(event.attempt, now)
        if isinstance(event, PrefillDone):
            return self._join(self._receiving.prefill_done(event, now), now)
        if isinstance(event, PagesArrived | PagesReceived | ReceiveFailed):
            return self._transferred(event, now)
        if isinstance(event, Failed):
            return self._prefill_failed(event, now)
        if isinstance(event, Fetch):
            return self._fetching.serve(event)
        if isinstance(event, FetchRefused):
            return self._fetching.give_up(event.attempt, now)
        if isinstance(event, PagesSent):
            self._fetching.sent(event)  # it sends nothing else
        return []

    def next_batch(self, now: float) -> tuple[list[Slice], list[Instruction]]:
        instructions = self._expire(now) + self._fetching.expire(now)
        for answer in self._running.who_gives_way():
            instructions += self._preempt(answer, now)
        instructions += self._admit(now)
        step = self._running.plan(self._limits.chunk_tokens)
        return [planned.part for planned in step], instructions

    def finish(self, sampled: Seq[Sampled | None], now: float) -> list[Instruction]:
        for planned, new in zip(self._running.take_step(), sampled, strict=True):
            if not planned.is_wanted:
                continue
            answer, part = planned.answer, planned.part
            planned.sequence.computed(part)
            if planned.is_given:
                self._counters.computed_tokens += len(part.token_ids)
                self._commit(answer, now)
            if new is not None:
                self._produced(answer, new, now)
        return self._outbox.flush()

    def abandon(self, failed: Collection[int], reason: str, now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        step = self._running.oldest_step
        for answer in [step[i].answer for i in failed if step[i].is_wanted]:
            instructions += self._drop(answer.attempt, now)
            instructions.append(self._failure(answer.request, reason, "node"))
        step[:] = [planned for i, planned in enumerate(step) if i not in failed]
        return instructions

    def load(self) -> Load:
        waiting = sum(len(a.tokens) for a in self._waiting if a.is_computed_here)
        running = sum(
            a.sequence.num_uncomputed for a in self._running if a.sequence and a.sequence.is_filling
        )
        return self._counters.load(
            "decode",
            self._cache,
            num_running=len(self._running) + len(self._receiving),
            num_waiting=len(self._waiting),
            queued_tokens=waiting + running - self._fetching.num_tokens,
            promised_pages=self._headroom() + sum(map(self._admission_pages, self._waiting)),
        )

    # Admission

    def _enqueue(self, request: Generate, now: float) -> list[Instruction]:
        instructions = self._drop(request.attempt, now)
        prompt = tokens_from_bytes(request.tokens)
        self._num_arrived += 1
        answer = Answer(request, prompt, [], self._num_arrived)
        num_pages = self._hasher.num_pages(answer.max_tokens)
        if num_pages > self._cache.num_pages:
            reason = (
                f"prompt and answer need {num_pages} pages, "
                f"decode node {self._node.name} has {self._cache.num_pages}"
            )
            return [*instructions, self._failure(request, reason, "request")]
        if len(self._waiting) >= self._limits.max_waiting:
            reason = f"{len(self._waiting)} requests wait already at {self._node.name}"
            return [*instructions, self._failure(request, reason, "busy")]
        answer.hashes = self._hasher.hashes(prompt, request.namespace)
        self._waiting.append(answer)
        return instructions

    def _admit(self, now: float) -> list[Instruction]:
        """In order of arrival, but a prompt waits for pages that come for another one, so that
        none travels twice; one that this node computes waits for those that it computes, too."""
        instructions: list[Instruction] = []
        for answer in list(islice(self._waiting, MAX_LOOKED_AT)):
            if self._num_admitted() == self._limits.max_running:
                break
            tokens = answer.tokens
            reusable = self._hasher.reusable(answer.hashes, len(tokens))
            if next_page_is_coming(
                self._cache, reusable, self._coming(answer.is_computed_here, now)
            ):
                continue
            num_pages = self._hasher.num_pages(len(tokens))
            num_spare_pages = self._headroom() + self._admission_pages(answer) - num_pages
            lease = self._cache.acquire(
                reusable, num_pages, now, answer.request.namespace, num_spare_pages
            )
            if lease is None:
                break
            self._waiting.remove(answer)
            num_cached = lease.num_cached_pages * self._hasher.page_size
            self._num_sequences += 1
            answer.sequence = Sequence(
                tokens, lease, answer.request.sampling, num_cached, self._num_sequences
            )
            instructions += self._begin(answer, reusable, now)
        return instructions

    def _begin(self, answer: Answer, reusable: Seq[PageHash], now: float) -> list[Instruction]:
        """It was admitted, for the first time or again."""
        assert answer.sequence is not None
        if answer.is_preempted:  # was counted, and fetches nothing: its old fetch may still arrive
            self._running.add(answer)
            return []
        if not answer.is_computed_here:
            self._counters.started(0)
            return self._receiving.begin(answer, now)
        answer.cached_tokens = answer.sequence.num_computed
        self._counters.started(answer.cached_tokens)
        self._running.add(answer)
        return self._fetching.begin(answer.request, answer.sequence, reusable, now)

    def _headroom(self) -> int:
        """Pages that all that are admitted should find when they grow."""
        return sum(
            self._admission_pages(answer) - len(answer.sequence.lease.pages)
            for answer in chain(self._running, self._receiving)
            if answer.sequence is not None
        )

    def _admission_pages(self, answer: Answer) -> int:
        """Of the tokens that it has, and of those that it should find room for."""
        num_tokens = len(answer.prompt) + len(answer.generated)
        return self._hasher.num_pages(admission_tokens(num_tokens, answer.max_tokens))

    def _coming(self, computed_ones: bool, now: float) -> Iterator[Seq[PageHash]]:
        """The prompts whose pages are received or fetched now, and `computed_ones` here."""
        yield from self._receiving.chains(now)
        yield from self._fetching.chains()
        if computed_ones:
            yield from (a.hashes for a in self._running if a.sequence and a.sequence.is_filling)

    def _expire(self, now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        for attempt in self._receiving.late(now):
            reason = f"no prefill within {self._limits.receive_timeout_s:g} s"
            instructions += self._receive_failed(attempt, reason, now)
        return instructions

    # From prefill to running

    def _transferred(
        self, event: PagesArrived | PagesReceived | ReceiveFailed, now: float
    ) -> list[Instruction]:
        """News of pages that this node fetches or receives from a prefill node."""
        transfer = event.transfer
        if transfer in self._fetching:
            if isinstance(event, PagesArrived):
                return self._fetched(
                    transfer, self._fetching.arrived(transfer, event.num_pages, now)
                )
            if isinstance(event, PagesReceived):
                return self._fetched(transfer, self._fetching.received(transfer, now))
            return self._fetching.failed(transfer, now)
        if isinstance(event, PagesArrived):
            self._receiving.arrived(transfer, event.num_pages, now)
            return []
        if isinstance(event, PagesReceived):
            return self._join(self._receiving.received(transfer, now), now)
        return self._receive_failed(transfer, event.reason, now)

    def _fetched(self, transfer: Attempt, num_tokens: int) -> list[Instruction]:
        if num_tokens > 0:
            (answer,) = [answer for answer in self._running if answer.attempt == transfer]
            answer.fetched_tokens += num_tokens
            answer.cached_tokens += num_tokens
        return []

    def _join(self, answer: Answer | None, now: float) -> list[Instruction]:
        """Moves a request to the running batch, its pages and its first token being here."""
        if answer is None:
            return []
        assert answer.prefilled is not None
        logprobs = answer.prefilled.first_logprobs
        first = Sampled(tuple(answer.prefilled.first_tokens), tuple(logprobs))
        self._running.add(answer)
        self._produced(answer, first, now)
        return self._outbox.flush()

    # Running

    def _preempt(self, answer: Answer, now: float) -> list[Instruction]:
        """It waits again, and may find what is computed of it when it goes on."""
        self._counters.preemptions += 1
        instructions = self._fetching.give_up(answer.attempt, now)
        self._commit(answer, now)
        self._running.end(answer)
        answer.is_preempted = True
        insort(self._waiting, answer, key=lambda a: a.arrival)
        return instructions

    def _produced(self, answer: Answer, new: Sampled, now: float) -> None:
        """A new token of a running answer: report it, and end the answer if it is the last."""
        assert answer.sequence is not None
        request, (token,) = answer.request, new.tokens
        answer.generated.append(token)
        answer.sequence.tokens.append(token)
        self._counters.generated_tokens += 1
        finish, reported = "", [token]
        if request.max_new_tokens == 0:
            finish, reported = "length", []
        elif token in request.stop_token_ids:
            finish = "stop"
        elif len(answer.generated) == request.max_new_tokens:
            finish = "length"
        out = TokenOut(
            attempt=answer.attempt,
            start=len(answer.generated) - 1,
            tokens=reported,
            finish=finish,
            cached_tokens=answer.cached_tokens,
            transferred_pages=answer.num_expected_pages,
            fetched_tokens=answer.fetched_tokens,
            logprobs=list(new.logprobs) if reported else [],
        )
        self._outbox.add(request.reply_address, out)
        if finish:
            self._commit(answer, now)
            self._running.end(answer)

    def _commit(self, answer: Answer, now: float) -> None:
        """Makes the full pages of what is computed findable; the answer's own at its end."""
        assert answer.sequence is not None
        page_size = self._hasher.page_size
        num_pages = answer.sequence.num_computed // page_size
        if num_pages > len(answer.hashes):
            answer.hashes = self._hasher.hashes(
                answer.sequence.tokens[: num_pages * page_size], answer.request.namespace
            )
        self._cache.commit(answer.sequence.lease, answer.hashes[:num_pages], now)

    # Ends

    def _receive_failed(self, attempt: Attempt, reason: str, now: float) -> list[Instruction]:
        """The pages did not come: the prefill node is to be avoided, not this one."""
        answer = self._receiving.get(attempt)
        if answer is None or answer.request.prefill_node is None:
            return []
        self._counters.transfer_failures += 1
        failed = Failed(attempt, reason, "node", answer.request.prefill_node)
        return [*self._drop(attempt, now), Send(answer.request.reply_address, failed)]

    def _prefill_failed(self, failed: Failed, now: float) -> list[Instruction]:
        answer = self._receiving.get(failed.attempt)
        if answer is None:
            return []
        return [*self._drop(failed.attempt, now), Send(answer.request.reply_address, failed)]

    def _drop(self, attempt: Attempt, now: float) -> list[Instruction]:
        """Gives up this attempt and every older one of its request; aborts before it releases."""
        instructions = self._receiving.give_up(attempt)
        for answer in [a for a in self._waiting if a.attempt.superseded_by(attempt)]:
            self._waiting.remove(answer)
        for answer in [a for a in self._running if a.attempt.superseded_by(attempt)]:
            instructions += self._fetching.give_up(answer.attempt, now)
            self._running.end(answer)
        return instructions

    def _failure(self, request: Generate, reason: str, kind: FailureKind) -> Instruction:
        return Send(request.reply_address, Failed(request.attempt, reason, kind, self._node))

    # Sizes

    def _num_admitted(self) -> int:
        return len(self._running) + len(self._receiving)

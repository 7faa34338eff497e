"""Prompts that prefill nodes compute for a decode node: their pages come one after another. Pure.

    begin ──► ExpectPages, Prefill ──► arrived … received ──┐
                      └──────────────► PrefillDone ─────────┴──► ready to run

What has arrived is committed at once: it can be found and is owned, whatever becomes of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from decode.answer import Answer
from engine.cache.prefix_cache import Lease, PrefixCache
from node.core.counters import Counters
from node.core.instructions import AbortTransfer, ExpectPages, Instruction, Send
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Addresses, Attempt
from protocol.messages import Cancel, Prefill, PrefillDone

PATIENCE_S = 2.0
"""A request that needs the same pages as another one waits for them while they keep coming. It
does not inherit the queue of a slow prefill node, nor wait for a hung one."""


@dataclass(eq=False)
class _UnderWay:
    answer: Answer
    lease: Lease
    deadline: float
    progress_at: float
    num_arrived_pages: int = 0
    done: PrefillDone | None = None
    done_at: float = 0.0

    @property
    def is_complete(self) -> bool:
        return self.num_arrived_pages == self.answer.num_expected_pages


class Receiving:
    """The answers whose prompts are under way to this node."""

    def __init__(
        self,
        addresses: Addresses,
        cache: PrefixCache,
        hasher: PageHasher,
        counters: Counters,
        timeout_s: float,
    ) -> None:
        """`addresses`: this node's own, told to prefill nodes."""
        self._addresses = addresses
        self._cache = cache
        self._hasher = hasher
        self._counters = counters
        self._timeout_s = timeout_s
        self._under_way: dict[Attempt, _UnderWay] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def __iter__(self) -> Iterator[Answer]:
        return (under_way.answer for under_way in self._under_way.values())

    def get(self, attempt: Attempt) -> Answer | None:
        under_way = self._under_way.get(attempt)
        return under_way.answer if under_way is not None else None

    def chains(self, now: float) -> Iterator[Seq[PageHash]]:
        """Pages worth waiting for, from the first page of a prompt on: those that are here, and
        those that keep coming."""
        for under_way in self._under_way.values():
            if now - under_way.progress_at < PATIENCE_S:
                yield under_way.answer.hashes

    def late(self, now: float) -> list[Attempt]:
        return [attempt for attempt, u in self._under_way.items() if now >= u.deadline]

    def begin(self, answer: Answer, now: float) -> list[Instruction]:
        """Asks the prefill node that the request names for the pages that its lease lacks."""
        assert answer.sequence is not None
        lease, request = answer.sequence.lease, answer.request
        pages = lease.pages[lease.num_cached_pages : self._hasher.num_pages(len(answer.prompt))]
        answer.num_expected_pages = len(pages)
        self._under_way[answer.attempt] = _UnderWay(
            answer, lease, now + self._timeout_s, self._progress_of(answer, lease, now)
        )
        prefill = Prefill(
            attempt=answer.attempt,
            tokens=request.tokens,
            namespace=request.namespace,
            sampling=request.sampling,
            skip_pages=lease.num_cached_pages,
            reply_address=self._addresses.control,
            data_addresses=self._addresses.data,
            fetch_node=request.fetch_node,
            fetch_address=request.fetch_address,
            fetch_pages=request.fetch_pages,
        )
        return [
            ExpectPages(answer.attempt, pages),
            Send(request.prefill_address, prefill),
        ]

    def arrived(self, attempt: Attempt, num_pages: int, now: float) -> None:
        """The first `num_pages` of those expected are here. All of them are full: only `received`
        brings the last page."""
        under_way = self._under_way.get(attempt)
        if under_way is not None:
            self._arrived(under_way, num_pages, now)

    def received(self, attempt: Attempt, now: float) -> Answer | None:
        """All pages are here. Returns the answer if it can run by that."""
        under_way = self._under_way.get(attempt)
        if under_way is None:
            return None
        self._arrived(under_way, under_way.answer.num_expected_pages, now)
        if under_way.done is not None:
            self._counters.exposed(under_way.done.node.name, now - under_way.done_at)
        return self._take_ready(under_way)

    def prefill_done(self, done: PrefillDone, now: float) -> Answer | None:
        """The first token is here. Returns the answer if it can run by that."""
        under_way = self._under_way.get(done.attempt)
        if under_way is None:
            return None
        under_way.done, under_way.done_at = done, now
        answer = under_way.answer
        answer.prefilled = done
        answer.cached_tokens = done.cached_tokens
        answer.fetched_tokens = done.fetched_tokens
        return self._take_ready(under_way)

    def give_up(self, attempt: Attempt) -> list[Instruction]:
        """This attempt and every older one of its request; aborts before it releases."""
        instructions: list[Instruction] = []
        for older in [a for a in self._under_way if a.superseded_by(attempt)]:
            under_way = self._under_way.pop(older)
            instructions.append(AbortTransfer(older))
            instructions.append(Send(under_way.answer.request.prefill_address, Cancel(older)))
            self._cache.release(under_way.lease)
        return instructions

    def _progress_of(self, answer: Answer, lease: Lease, now: float) -> float:
        """That of the others who wait for its next page, if there are any: asking once more does
        not make it come."""
        first = lease.num_cached_pages
        others = [
            under_way.progress_at
            for under_way in self._under_way.values()
            if under_way.answer.hashes[first : first + 1] == answer.hashes[first : first + 1] != []
        ]
        return max(others, default=now)

    def _arrived(self, under_way: _UnderWay, num_pages: int, now: float) -> None:
        num_new = num_pages - under_way.num_arrived_pages
        if num_new <= 0:
            return
        under_way.num_arrived_pages, under_way.progress_at = num_pages, now
        self._counters.pages_received += num_new
        num_pages_here = under_way.lease.num_cached_pages + num_pages
        self._cache.commit(under_way.lease, under_way.answer.hashes[:num_pages_here], now)

    def _take_ready(self, under_way: _UnderWay) -> Answer | None:
        if not under_way.is_complete or under_way.done is None:
            return None
        answer = under_way.answer
        assert answer.sequence is not None
        answer.sequence.num_computed = len(answer.prompt)
        del self._under_way[answer.attempt]
        return answer

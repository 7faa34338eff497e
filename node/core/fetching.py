"""Fetching the first pages of a prompt from a node that owns them, in place of computing them.
Pure.

    asker   acquire ──► ExpectPages, Fetch ──► pages arrive: commit them
                                          ├──► all are here: compute what follows
                                          └──► refused, broken or late: abort, compute the rest too
    owner   Fetch ──► SendPages, and hold the pages until they are sent; or FetchRefused

A fetch that fails costs time and nothing else. While it travels its request computes nothing;
other requests do.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

from engine.batches.sequence import Sequence
from engine.cache.prefix_cache import HeldPages, PrefixCache
from node.core.instructions import (
    AbortTransfer,
    ExpectPages,
    Instruction,
    PagesSent,
    SendMessage,
    SendPages,
)
from node.core.job import Job
from node.load.counters import Counters
from protocol.hashing import PageHash, PageHasher, join_hashes, split_hashes
from protocol.ids import Addresses, Attempt, Node
from protocol.messages import Fetch, FetchRefused

FETCH_TIMEOUT_S = 3.0
"""How long a fetch may make no progress. A dead owner says nothing, and one in a long step says
nothing for its length."""


@dataclass(eq=False)
class _PendingFetch:
    sequence: Sequence
    chain: Seq[PageHash]
    """Page hashes from the first page of the prompt to the last fetched one."""
    owner: str
    asked: float
    deadline: float


@dataclass(eq=False)
class _ServedFetch:
    """All sends of one attempt to a node that asked for pages. The news of their ends does not tell
    them apart, so pages are released when all have ended."""

    all_held: list[HeldPages] = field(default_factory=list)
    num_ended: int = 0


class Fetching:
    """Does both sides of fetches: waits for those that this node has asked for, and serves those of
    other nodes."""

    def __init__(
        self,
        node: Node,
        addresses: Addresses,
        cache: PrefixCache,
        hasher: PageHasher,
        counters: Counters,
        timeout_s: float,
    ) -> None:
        """`addresses` are this node's own, where owners send pages and refusals. A fetch is given
        up when it has made no progress for `timeout_s`."""
        self._node = node
        self._addresses = addresses
        self._cache = cache
        self._page_size = hasher.page_size
        self._counters = counters
        self._timeout_s = timeout_s
        self._under_way: dict[Attempt, _PendingFetch] = {}
        self._serving: dict[Attempt, _ServedFetch] = {}

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._under_way

    @property
    def num_tokens(self) -> int:
        """The number of prompt tokens whose pages are under way to this node."""
        return sum(
            len(fetch.chain) * self._page_size - fetch.sequence.num_computed
            for fetch in self._under_way.values()
        )

    def chains(self) -> Iterator[Seq[PageHash]]:
        """Returns the chains of page hashes that are being fetched, each from the first page of its
        prompt on."""
        return (fetch.chain for fetch in self._under_way.values())

    # The asker

    def begin(self, job: Job[Any], reusable: Seq[PageHash], now: float) -> list[Instruction]:
        """Asks the owner that the job names for the pages that the job lacks; returns [] if it
        lacks none.

        `reusable` are the hashes of pages that the prompt may hit. Until `received` or `give_up`
        the attempt is `in` this object, and the pages that it lacks belong to the transfer.
        """
        sequence, order = job.sequence, job.fetch
        if order is None or order.owner == self._node:
            return []
        assert sequence is not None
        chain = reusable[: order.num_pages]
        num_cached = sequence.held.num_cached_pages
        if len(chain) <= num_cached:
            return []
        self._under_way[job.attempt] = _PendingFetch(
            sequence, chain, order.owner.name, now, now + self._timeout_s
        )
        question = Fetch(
            attempt=job.attempt,
            hashes=join_hashes(chain),
            skip_pages=num_cached,
            reply_address=self._addresses.control,
            data_addresses=self._addresses.data,
        )
        return [
            # Expect before asking: the first pages may come before the next turn.
            ExpectPages(job.attempt, sequence.held.pages[num_cached : len(chain)]),
            SendMessage(order.address, question),
        ]

    def arrived(self, attempt: Attempt, num_pages: int, now: float) -> int:
        """Notes that the first `num_pages` of those asked for are here. They are owned from now on,
        and the sequence goes on behind them, whatever becomes of the rest.

        Returns how many tokens are new: 0 if none is, or if the fetch was given up before.
        """
        fetch = self._under_way.get(attempt)
        if fetch is None:
            return 0
        sequence = fetch.sequence
        num_pages_here = sequence.held.num_cached_pages + num_pages
        num_tokens = num_pages_here * self._page_size - sequence.num_computed
        if num_tokens <= 0:
            return 0
        # Progress of any size begins the wait anew: a long prefix may take longer than the timeout.
        fetch.deadline = now + self._timeout_s
        sequence.num_computed += num_tokens
        self._counters.fetched(num_tokens // self._page_size, num_tokens)
        self._cache.commit(sequence.held, fetch.chain[:num_pages_here], now)
        return num_tokens

    def received(self, attempt: Attempt, now: float) -> int:
        """Notes that all pages are here, which ends the fetch. Returns how many tokens are new."""
        fetch = self._under_way.get(attempt)
        if fetch is None:
            return 0
        num_pages = len(fetch.chain) - fetch.sequence.held.num_cached_pages
        num_tokens = self.arrived(attempt, num_pages, now)
        self._end(attempt, now)
        return num_tokens

    def give_up(self, attempt: Attempt, now: float) -> list[Instruction]:
        """Ends a fetch. The pages that are still lacking are computed here, unless the job is
        leaving. Does nothing if no fetch is under way."""
        if attempt not in self._under_way:
            return []
        self._end(attempt, now)
        return [AbortTransfer(attempt)]

    def failed(self, attempt: Attempt, now: float) -> list[Instruction]:
        """Ends a fetch as `give_up` does, and counts it as a failure: it broke or is late."""
        self._counters.transfer_failures += attempt in self._under_way
        return self.give_up(attempt, now)

    def expire(self, now: float) -> list[Instruction]:
        """Ends every fetch that has made no progress for too long."""
        late = [attempt for attempt, fetch in self._under_way.items() if now >= fetch.deadline]
        return [instruction for attempt in late for instruction in self.failed(attempt, now)]

    def _end(self, attempt: Attempt, now: float) -> None:
        fetch = self._under_way.pop(attempt)
        self._counters.exposed(fetch.owner, now - fetch.asked)

    # The owner

    def serve(self, fetch: Fetch) -> list[Instruction]:
        """Sends the pages that another node asks for, or refuses if one of them is not here.

        The pages are held until they are sent. That does not count as a use of them, since there is
        another copy from now on.
        """
        chain = split_hashes(fetch.hashes)
        held = self._cache.hold(chain)
        if len(held.pages) < len(chain):
            self._cache.release(held)
            num_pages = len(held.pages)
            reason = f"{self._node.name} has {num_pages} of these {len(chain)} pages (any more)"
            refused = FetchRefused(fetch.attempt, reason, self._node)
            return [SendMessage(fetch.reply_address, refused)]
        self._serving.setdefault(fetch.attempt, _ServedFetch()).all_held.append(held)
        pages = held.pages[fetch.skip_pages :]
        self._counters.pages_sent += len(pages)
        return [SendPages(fetch.data_addresses, fetch.attempt, pages, 0, is_fetch=True)]

    def sent(self, event: PagesSent) -> None:
        """Notes that pages were sent to another node, or could not be. The asker notices by itself
        when pages do not come."""
        self._counters.transfer_failures += bool(event.error)
        serving = self._serving[event.transfer]
        serving.num_ended += 1
        if serving.num_ended == len(serving.all_held):
            del self._serving[event.transfer]
            for held in serving.all_held:
                self._cache.release(held)

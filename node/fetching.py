"""Fetching the first pages of a prompt from a node that owns them, in place of computing them.
Pure; both schedulers have one.

    asker   acquire ──► ExpectPages, Fetch ──► all here: commit them, compute what follows
                                          └──► refused, broken or late: abort, compute them too
    owner   Fetch ──► SendPages, or FetchRefused

A fetch that fails costs time and nothing else. While it travels its request computes nothing;
other requests do.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from engine.cache import PrefixCache
from engine.request import Sequence
from node.counters import Counters
from node.instructions import AbortTransfer, ExpectPages, Instruction, PagesSent, Send, SendPages
from protocol.hashing import PageHash, PageHasher, join_hashes, split_hashes
from protocol.ids import Attempt, Node
from protocol.messages import Fetch, FetchRefused, Generate, Prefill

FETCH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class _UnderWay:
    sequence: Sequence
    chain: Seq[PageHash]
    """From the first page of the prompt to the last fetched one."""
    deadline: float

    @property
    def num_pages(self) -> int:
        return len(self.chain) - self.sequence.lease.num_cached_pages


class Fetching:
    """The fetches that this node waits for, and the answers to those of others."""

    def __init__(
        self,
        node: Node,
        addresses: tuple[str, str],
        cache: PrefixCache,
        hasher: PageHasher,
        counters: Counters,
        timeout_s: float,
    ) -> None:
        """`addresses`: this node's own control and data address, told to owners."""
        self._node = node
        self._control_address, self._data_address = addresses
        self._cache = cache
        self._page_size = hasher.page_size
        self._counters = counters
        self._timeout_s = timeout_s
        self._under_way: dict[Attempt, _UnderWay] = {}

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._under_way

    @property
    def num_tokens(self) -> int:
        """Prompt tokens under way to this node."""
        return sum(fetch.num_pages for fetch in self._under_way.values()) * self._page_size

    # The asker

    def begin(
        self, request: Generate | Prefill, sequence: Sequence, reusable: Seq[PageHash], now: float
    ) -> list[Instruction]:
        """Asks the owner that `request` names for what the lease lacks; [] if it lacks nothing.

        `reusable`: the hashes that the prompt may hit. Until `received` or `give_up` the request
        is under way (`in`) and its pages belong to the transfer.
        """
        chain = reusable[: request.fetch_pages]
        lease = sequence.lease
        fetch = _UnderWay(sequence, chain, now + self._timeout_s)
        if not request.fetch_address or request.fetch_node == self._node or fetch.num_pages <= 0:
            return []
        self._under_way[request.attempt] = fetch
        question = Fetch(
            attempt=request.attempt,
            hashes=join_hashes(chain),
            skip_pages=lease.num_cached_pages,
            reply_address=self._control_address,
            data_address=self._data_address,
        )
        return [
            ExpectPages(request.attempt, lease.pages[lease.num_cached_pages : len(chain)]),
            Send(request.fetch_address, question),
        ]

    def received(self, attempt: Attempt, now: float) -> int:
        """All pages of a fetch are here: they are owned, and the sequence goes on behind them.

        Returns how many tokens they hold; 0: this was no fetch, or it was given up before.
        """
        fetch = self._under_way.pop(attempt, None)
        if fetch is None:
            return 0
        num_tokens = fetch.num_pages * self._page_size
        self._counters.fetched(fetch.num_pages, num_tokens)
        fetch.sequence.num_computed += num_tokens
        self._cache.commit(fetch.sequence.lease, fetch.chain, now)
        return num_tokens

    def give_up(self, attempt: Attempt) -> list[Instruction]:
        """The pages will be computed here, or released. Harmless if no fetch is under way."""
        if self._under_way.pop(attempt, None) is None:
            return []
        return [AbortTransfer(attempt)]

    def failed(self, attempt: Attempt) -> list[Instruction]:
        """`give_up`, as the transfer broke or is late."""
        self._counters.transfer_failures_total += attempt in self._under_way
        return self.give_up(attempt)

    def expire(self, now: float) -> list[Instruction]:
        late = [attempt for attempt, fetch in self._under_way.items() if now >= fetch.deadline]
        return [instruction for attempt in late for instruction in self.failed(attempt)]

    # The owner

    def serve(self, fetch: Fetch) -> list[Instruction]:
        """Sends all that is asked for, or refuses.

        Nothing is locked: the transport copies the pages before the next event is handled. Nor
        does it count as a use: there is another copy of these pages from now on.
        """
        chain = split_hashes(fetch.hashes)
        pages = self._cache.find(chain)
        if len(pages) < len(chain):
            reason = f"{self._node.name} has {len(pages)} of these {len(chain)} pages (any more)"
            refused = FetchRefused(fetch.attempt, reason, self._node)
            return [Send(fetch.reply_address, refused)]
        pages = pages[fetch.skip_pages :]
        self._counters.pages_sent_total += len(pages)
        return [SendPages(fetch.data_address, fetch.attempt, pages, 0, is_fetch=True)]

    def sent(self, event: PagesSent) -> None:
        """The asker notices by itself when pages do not come."""
        self._counters.transfer_failures_total += bool(event.error)

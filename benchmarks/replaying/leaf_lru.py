"""A cache of blocks by prefix that evicts the least recently used leaf; the model of one node."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from protocol.hashing import PageHash


class LeafLru:
    """`capacity` blocks; 0: no limit."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity or 1 << 62
        self._last_used: dict[PageHash, float] = {}
        self._parent: dict[PageHash, PageHash | None] = {}
        self._num_children: dict[PageHash, int] = {}
        self._leaves: list[tuple[float, PageHash]] = []  # repaired when popped

    @property
    def num_free(self) -> int:
        return self._capacity - len(self._last_used)

    def match(self, hashes: Sequence[PageHash]) -> int:
        """Leading blocks that are here; whole prefixes are, so it bisects."""
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) // 2
            if hashes[middle] in self._last_used:
                low = middle + 1
            else:
                high = middle
        return low

    def use(self, hashes: Sequence[PageHash], now: float) -> None:
        """Marks blocks that are here as used."""
        for block in hashes:
            self._last_used[block] = now
        if hashes and not self._num_children[hashes[-1]]:
            heapq.heappush(self._leaves, (now, hashes[-1]))

    def insert(
        self, hashes: Sequence[PageHash], now: float
    ) -> tuple[list[PageHash], list[PageHash]]:
        """Makes the chain present and used; returns the blocks stored and those evicted for it."""
        hashes = hashes[: self._capacity]
        num_present = self.match(hashes)
        present, new = hashes[:num_present], list(hashes[num_present:])
        for block in present:
            self._last_used[block] = now
        evicted = self._evict(len(new) - self.num_free, set(present))
        parent = present[-1] if present else None
        for block in new:
            self._last_used[block] = now
            self._parent[block] = parent
            self._num_children[block] = 0
            if parent is not None:
                self._num_children[parent] += 1
            parent = block
        if parent is not None and not self._num_children[parent]:
            heapq.heappush(self._leaves, (now, parent))
        return new, evicted

    def _evict(self, count: int, kept: set[PageHash]) -> list[PageHash]:
        evicted: list[PageHash] = []
        passed_over = []
        while len(evicted) < count and self._leaves:
            used, block = heapq.heappop(self._leaves)
            last_used = self._last_used.get(block)
            if last_used is None or self._num_children[block]:
                continue
            if last_used != used:
                heapq.heappush(self._leaves, (last_used, block))
            elif block in kept:
                passed_over.append((used, block))
            else:
                evicted.append(block)
                self._remove(block)
        for leaf in passed_over:
            heapq.heappush(self._leaves, leaf)
        return evicted

    def _remove(self, block: PageHash) -> None:
        del self._last_used[block], self._num_children[block]
        parent = self._parent.pop(block)
        if parent is not None:
            self._num_children[parent] -= 1
            if not self._num_children[parent]:
                heapq.heappush(self._leaves, (self._last_used[parent], parent))

"""`ExpectedPages`: pages that nodes own or soon will, before their records in Redis tell. Pure.

A policy that waits for ownership events sends the next turn of a conversation, or the tenth copy
of a prompt, somewhere else, and the same pages are computed twice. So what is dispatched, and what
tokens tell of, counts at once, until the node's own events have told what became of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from protocol.hashing import PageHash
from protocol.ids import Node

KEPT_S = 5.0
"""An expectation counts for one to two of these: longer than events are late, shorter than pages
live."""


class ExpectedPages:
    """Remembers which pages to expect at which node, for KEPT_S at least and twice that at most.

    There are two generations of expectations, and the older one is dropped as a whole, so nothing
    has to be looked for when its time is over.
    """

    def __init__(self) -> None:
        self._newer: dict[Node, set[PageHash]] = {}
        self._older: dict[Node, set[PageHash]] = {}
        self._began = 0.0
        self._version = 0

    def version(self, now: float) -> int:
        """Returns a number that grows with every change: while it stays, `extend` says the same."""
        self._age(now)
        return self._version

    def add(self, node: Node, hashes: Sequence[PageHash], num_owned: int, now: float) -> None:
        """Expects that `node` has, or will have, all of `hashes`. That it owns the first
        `num_owned` of them is known already."""
        self._age(now)
        if num_owned == len(hashes):
            return
        claimed = self._newer.setdefault(node, set())
        # What is between these two is claimed as well: claims are whole rests of chains.
        if hashes[num_owned] not in claimed or hashes[-1] not in claimed:
            self._version += 1
            claimed.update(hashes[num_owned:])

    def extend(
        self, hashes: Sequence[PageHash], owned: Mapping[Node, int], now: float
    ) -> dict[Node, int]:
        """Returns how many leading pages of the chain `hashes` each node has or will have.

        `owned` says how many it is known to own; what is expected behind those is added to them.
        """
        self._age(now)
        depths = dict(owned)
        num_pages = len(hashes)
        for generation in (self._older, self._newer):
            for node, expected in generation.items():
                depth = depths.get(node, 0)
                if depth < num_pages and hashes[depth] in expected:
                    depths[node] = _end(hashes, expected, depth)
        return depths

    def drop(self, node: Node, hashes: Collection[PageHash]) -> None:
        """Expects these pages no more: the node has removed them."""
        self._version += 1
        for generation in (self._older, self._newer):
            if node in generation:
                generation[node].difference_update(hashes)

    def forget(self, node: Node) -> None:
        """Forgets an incarnation of a node that is over."""
        self._version += 1
        self._older.pop(node, None)
        self._newer.pop(node, None)

    def _age(self, now: float) -> None:
        age_s = now - self._began
        if age_s <= KEPT_S:
            return
        self._version += 1
        self._older, self._newer = self._newer, {}
        self._began += KEPT_S
        if age_s > 2 * KEPT_S:
            self._older = {}
            self._began = now


def _end(hashes: Sequence[PageHash], expected: set[PageHash], low: int) -> int:
    """Returns the first position behind `low` whose page is not expected.

    It bisects: the pages expected of a chain have no gap, since `add` notes the whole rest.
    """
    high = len(hashes)
    while high - low > 1:
        middle = (low + high) // 2
        if hashes[middle] in expected:
            low = middle
        else:
            high = middle
    return high

"""`Claims`: pages that nodes own, or will own soon, though their events have not told yet. Pure.

A policy that waits for ownership events sends the next turn of a conversation, or the tenth copy
of a prompt, somewhere else, and the same pages are computed twice. So what is dispatched, and what
tokens tell of, counts at once, until the node's own events have told what became of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from protocol.hashing import PageHash
from protocol.ids import Node

KEPT_S = 5.0
"""A claim counts for one to two of these: longer than events are late, shorter than pages live."""


class Claims:
    """Keeps two generations of claims; the older one is dropped as a whole."""

    def __init__(self) -> None:
        self._newer: dict[Node, set[PageHash]] = {}
        self._older: dict[Node, set[PageHash]] = {}
        self._began = 0.0
        self._version = 0

    def version(self, now: float) -> int:
        """Returns a number that grows with every change: while it stays, `extend` says the same."""
        self._age(now)
        return self._version

    def claim(self, node: Node, hashes: Sequence[PageHash], num_owned: int, now: float) -> None:
        """Notes that `node` has, or will have, all of `hashes`; that it owns the first `num_owned`
        is known already."""
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
        """Returns the leading pages of each node, given those that it is known to own."""
        self._age(now)
        depths = dict(owned)
        num_pages = len(hashes)
        for generation in (self._older, self._newer):
            for node, claimed in generation.items():
                depth = depths.get(node, 0)
                if depth < num_pages and hashes[depth] in claimed:
                    depths[node] = _end(hashes, claimed, depth)
        return depths

    def drop(self, node: Node, hashes: Collection[PageHash]) -> None:
        """Takes that the node has these pages no more."""
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


def _end(hashes: Sequence[PageHash], claimed: set[PageHash], low: int) -> int:
    """Returns the first position behind `low` that is not claimed; claims are whole rests of
    chains."""
    high = len(hashes)
    while high - low > 1:
        middle = (low + high) // 2
        if hashes[middle] in claimed:
            low = middle
        else:
            high = middle
    return high

"""`PrefixIndex`: which node owns which page, by page hash. Pure; a mirror of Redis in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocol.hashing import PageHash
from protocol.ids import Node


class PrefixIndex:
    """Maps a page hash to a bit mask of owners.

    Ownership is prefix-closed (nodes store parents before and remove them after children), so a
    node's depth on a chain of hashes is the first position that it does not own.
    """

    def __init__(self) -> None:
        self._owners: dict[PageHash, int] = {}
        self._bits: dict[Node, int] = {}
        self._owned: dict[Node, set[PageHash]] = {}

    def stored(self, node: Node, hashes: Iterable[PageHash]) -> None:
        bit = self._bit(node)
        owned = self._owned.setdefault(node, set())
        for page_hash in hashes:
            self._owners[page_hash] = self._owners.get(page_hash, 0) | bit
            owned.add(page_hash)

    def removed(self, node: Node, hashes: Iterable[PageHash]) -> None:
        bit = self._bits.get(node, 0)
        owned = self._owned.get(node, set())
        for page_hash in hashes:
            if page_hash not in owned:
                continue
            owned.remove(page_hash)
            rest = self._owners[page_hash] & ~bit
            if rest:
                self._owners[page_hash] = rest
            else:
                del self._owners[page_hash]

    def reload(self, node: Node, hashes: Iterable[PageHash]) -> None:
        """Replaces everything known of a node."""
        wanted = set(hashes)
        self.removed(node, self._owned.get(node, set()) - wanted)
        self.stored(node, wanted)

    def forget(self, node: Node) -> None:
        """The node's lease ended: it owns nothing."""
        self.removed(node, list(self._owned.get(node, ())))
        self._owned.pop(node, None)
        self._bits.pop(node, None)

    def match(self, hashes: Sequence[PageHash]) -> dict[Node, int]:
        """Number of leading pages of the chain that each node owns; nodes with none are absent."""
        depths: dict[Node, int] = {}
        remaining = dict(self._bits)
        alive = -1
        for depth, page_hash in enumerate(hashes):
            alive &= self._owners.get(page_hash, 0)
            for node in [n for n, bit in remaining.items() if not alive & bit]:
                del remaining[node]
                if depth:
                    depths[node] = depth
            if not alive:
                return depths
        depths.update((node, len(hashes)) for node in remaining if hashes)
        return depths

    def num_pages(self, node: Node) -> int:
        return len(self._owned.get(node, ()))

    @property
    def num_unique_pages(self) -> int:
        return len(self._owners)

    @property
    def num_owned_pages(self) -> int:
        """Pages over all nodes; minus `num_unique_pages`: replicas."""
        return sum(map(len, self._owned.values()))

    def _bit(self, node: Node) -> int:
        bit = self._bits.get(node)
        if bit is None:
            used = sum(self._bits.values())
            position = 0
            while used >> position & 1:
                position += 1
            bit = self._bits[node] = 1 << position
        return bit

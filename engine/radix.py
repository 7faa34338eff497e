"""`RadixTree`: cached pages by the hashes of their prefixes. Pure.

After SGLang's RadixAttention (Zheng et al., 2024), with one difference: an edge is a run of
chained page hashes instead of tokens, so a key is 16 bytes per page whatever the page size, and
tenants, models and adapters are apart by construction (`protocol.hashing.namespace`).

                     root
                    /    \\
        [h0 h1 h2]          [k0]            each run holds its pages side by side
         /      \\
     [h3 h4]    [g3]                        only unlocked leaves are evicted, tail first
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from protocol.hashing import PageHash


class RadixNode:
    """A run of pages below `parent`. `locks` counts the leases whose path goes through it."""

    __slots__ = ("children", "hashes", "last_used", "locks", "pages", "parent")

    def __init__(
        self,
        parent: RadixNode | None,
        hashes: list[PageHash],
        pages: list[int],
        locks: int,
        last_used: float,
    ) -> None:
        self.parent = parent
        self.hashes = hashes
        self.pages = pages
        self.locks = locks
        self.last_used = last_used
        self.children: dict[PageHash, RadixNode] = {}


class RadixTree:
    """Lookup, insertion, locks and leaf-first LRU eviction. Owns no free list."""

    def __init__(self) -> None:
        self.root = RadixNode(None, [], [], locks=1, last_used=0.0)
        self.num_pages = 0
        self.num_locked_pages = 0

    def match(self, hashes: Sequence[PageHash], now: float) -> tuple[list[int], RadixNode]:
        """Pages of the longest cached prefix, and the node where it ends.

        Marks the path as used at `now`; splits a node when the match ends inside its run.
        """
        node, pages = self.root, list[int]()
        while len(pages) < len(hashes):
            child = node.children.get(hashes[len(pages)])
            if child is None:
                break
            common = _common_length(child.hashes, hashes, len(pages))
            if common < len(child.hashes):
                child = self._split(child, common)
            child.last_used = now
            pages += child.pages
            node = child
        return pages, node

    def match_length(self, hashes: Sequence[PageHash]) -> int:
        """Number of pages that `match` would return; changes nothing."""
        node, length = self.root, 0
        while length < len(hashes):
            child = node.children.get(hashes[length])
            if child is None:
                break
            common = _common_length(child.hashes, hashes, length)
            length += common
            if common < len(child.hashes):
                break
            node = child
        return length

    def insert(
        self, hashes: Sequence[PageHash], pages: Sequence[int], now: float
    ) -> tuple[int, RadixNode]:
        """Makes `hashes` cached; returns how many were so before, and the node at their end.

        Of `pages` (one per hash) only those behind the returned length are taken over.
        """
        assert len(hashes) == len(pages)
        present, node = self.match(hashes, now)
        length = len(present)
        if length < len(hashes):
            leaf = RadixNode(node, list(hashes[length:]), list(pages[length:]), 0, now)
            node.children[leaf.hashes[0]] = leaf
            self.num_pages += len(leaf.pages)
            node = leaf
        return length, node

    def lock(self, node: RadixNode) -> None:
        """Keeps the path from the root to `node` from eviction, until a matching `unlock`."""
        while node.parent is not None:
            if node.locks == 0:
                self.num_locked_pages += len(node.pages)
            node.locks += 1
            node = node.parent

    def unlock(self, node: RadixNode) -> None:
        while node.parent is not None:
            assert node.locks > 0, "unlock without lock"
            node.locks -= 1
            if node.locks == 0:
                self.num_locked_pages -= len(node.pages)
            node = node.parent

    def evict(self, count: int) -> tuple[list[PageHash], list[int]]:
        """Removes up to `count` pages, least recently used leaves first, each from its tail.

        Returns their hashes (children always before parents) and page indices.
        """
        serial = itertools.count()  # breaks ties, so that nodes are never compared
        leaves = [
            (leaf.last_used, next(serial), leaf) for leaf in self._leaves() if leaf.locks == 0
        ]
        heapq.heapify(leaves)
        hashes: list[PageHash] = []
        pages: list[int] = []
        while leaves and len(pages) < count:
            _, _, leaf = heapq.heappop(leaves)
            wanted = count - len(pages)
            hashes += leaf.hashes[: -wanted - 1 : -1]
            pages += leaf.pages[: -wanted - 1 : -1]
            if wanted < len(leaf.pages):
                del leaf.hashes[-wanted:], leaf.pages[-wanted:]
                break
            parent = leaf.parent
            assert parent is not None
            del parent.children[leaf.hashes[0]]
            if parent.parent is not None and not parent.children and parent.locks == 0:
                heapq.heappush(leaves, (parent.last_used, next(serial), parent))
        self.num_pages -= len(pages)
        return hashes, pages

    def _leaves(self) -> list[RadixNode]:
        leaves, stack = [], list(self.root.children.values())
        while stack:
            node = stack.pop()
            if node.children:
                stack += node.children.values()
            else:
                leaves.append(node)
        return leaves

    def _split(self, node: RadixNode, length: int) -> RadixNode:
        """Cuts the run of `node` after `length` pages; returns the new upper half."""
        parent = node.parent
        assert parent is not None and 0 < length < len(node.hashes)
        upper = RadixNode(
            parent, node.hashes[:length], node.pages[:length], node.locks, node.last_used
        )
        parent.children[upper.hashes[0]] = upper
        node.hashes, node.pages = node.hashes[length:], node.pages[length:]
        node.parent = upper
        upper.children[node.hashes[0]] = node
        return upper


def _common_length(run: Sequence[PageHash], hashes: Sequence[PageHash], offset: int) -> int:
    """How many hashes of `run` equal those of `hashes` from `offset` on; bisects, as the hashes
    are chained: equal at i means equal before i."""
    limit = min(len(run), len(hashes) - offset)
    if run[limit - 1] == hashes[offset + limit - 1]:
        return limit
    low, high = 0, limit - 1  # equal below low, different from high on
    while low < high:
        middle = (low + high) // 2
        if run[middle] == hashes[offset + middle]:
            low = middle + 1
        else:
            high = middle
    return low

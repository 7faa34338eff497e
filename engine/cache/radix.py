"""`RadixTree`: cached pages by the hashes of their prefixes. Pure.

After SGLang's RadixAttention (Zheng et al., 2024), with one difference: an edge is a run of
chained page hashes instead of tokens, so a key is 16 bytes per page whatever the page size, and
tenants, models and adapters are apart by construction (`protocol.hashing.namespace`).

                     root
                    /    \\
        [h0 h1 h2]          [k0]            each run holds its pages side by side
         /      \\
     [h3 h4]    [g3]                        only unlocked leaves are evicted, tail first

A node also knows in which order its children's first pages are by their tokens, so that the one is
found that begins most like the tokens behind a prefix.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence

from engine.cache import beginnings
from engine.cache.beginnings import Beginnings
from protocol.hashing import PageHash


class RadixNode:
    """A run of pages that follow those of `parent`. `locks` counts the requests whose path goes
    through it; `is_queued` says that it has its one entry in the tree's queue of eviction. `keys`
    are those of the pages' tokens, `followers` has the first page of every child."""

    __slots__ = (
        "children",
        "followers",
        "hashes",
        "is_queued",
        "keys",
        "last_used",
        "locks",
        "pages",
        "parent",
    )

    def __init__(
        self,
        parent: RadixNode | None,
        hashes: list[PageHash],
        pages: list[int],
        keys: list[bytes],
        locks: int,
        last_used: float,
    ) -> None:
        self.parent = parent
        self.hashes = hashes
        self.pages = pages
        self.keys = keys
        self.locks = locks
        self.last_used = last_used
        self.is_queued = False
        self.children: dict[PageHash, RadixNode] = {}
        self.followers: Beginnings = []

    @property
    def is_evictable(self) -> bool:
        """True if nobody holds the run and no longer prefix hangs on it."""
        return self.locks == 0 and not self.children


class RadixTree:
    """Finds, inserts, locks and evicts pages, least recently used leaves first. It does not know
    which pages are free. Times given to it must not fall.

    The queue of eviction is a heap that is repaired when it is read: every evictable leaf has one
    entry, which says a time no later than its last use. An entry that says too early a time is put
    back with the right one; one whose node is locked or has children is dropped, and made anew when
    the node becomes evictable. So a use costs nothing, and an eviction O(log leaves).
    """

    def __init__(self) -> None:
        self.root = RadixNode(None, [], [], [], locks=1, last_used=0.0)
        self.num_pages = 0
        self.num_locked_pages = 0
        self._queue: list[tuple[float, int, RadixNode]] = []
        self._serial = itertools.count()  # breaks ties, so that nodes are never compared

    def match(self, hashes: Sequence[PageHash], now: float | None) -> tuple[list[int], RadixNode]:
        """Returns the pages of the longest cached prefix, and the node where it ends.

        Marks the path as used at `now`, if that is given. Splits a node if the match ends inside
        its run.
        """
        node, pages = self.root, list[int]()
        while len(pages) < len(hashes):
            child = node.children.get(hashes[len(pages)])
            if child is None:
                break
            common = _common_length(child.hashes, hashes, len(pages))
            if common < len(child.hashes):
                child = self._split(child, common)
            if now is not None:
                child.last_used = now
            pages += child.pages
            node = child
        return pages, node

    def find(self, hashes: Sequence[PageHash]) -> list[int]:
        """Returns the pages that `match` would return. Changes nothing, not even the time of the
        last use."""
        node, pages = self.root, list[int]()
        while len(pages) < len(hashes):
            child = node.children.get(hashes[len(pages)])
            if child is None:
                break
            common = _common_length(child.hashes, hashes, len(pages))
            pages += child.pages[:common]
            if common < len(child.hashes):
                break
            node = child
        return pages

    def hashes(self) -> list[PageHash]:
        """Returns the hashes of all pages, parents before children."""
        return [page_hash for node in _below(self.root) for page_hash in node.hashes]

    def closest(
        self, node: RadixNode, key: bytes, more_than: int, now: float
    ) -> tuple[int, int] | None:
        """Returns the page that follows `node` whose key has the longest common beginning with
        `key`, and how many tokens that has; None if no page has more than `more_than` tokens in
        common with it. Marks that page as used at `now`, and no other: if more pages follow in its
        run, it splits the node.
        """
        found = beginnings.closest(node.followers, key)
        if found is None or found[1] <= more_than:
            return None
        page_hash, num_tokens = found
        child = node.children[page_hash]
        if len(child.pages) > 1:
            child = self._split(child, 1)
        child.last_used = now
        return child.pages[0], num_tokens

    def append(
        self,
        node: RadixNode,
        hashes: Sequence[PageHash],
        pages: Sequence[int],
        keys: Sequence[bytes],
        now: float,
    ) -> RadixNode:
        """Makes pages cached that follow `node`, none of which is cached yet; returns the node at
        their end. There is one hash, page and key of tokens for each."""
        assert len(hashes) == len(pages) == len(keys) > 0 and hashes[0] not in node.children
        leaf = RadixNode(node, list(hashes), list(pages), list(keys), 0, now)
        node.children[leaf.hashes[0]] = leaf
        beginnings.add(node.followers, leaf.keys[0], leaf.hashes[0])
        self.num_pages += len(leaf.pages)
        self._enqueue(leaf)
        return leaf

    def lock(self, node: RadixNode) -> None:
        """Keeps the path from the root to `node` from eviction, until `unlock` was called as
        often."""
        while node.parent is not None:
            if node.locks == 0:
                self.num_locked_pages += len(node.pages)
            node.locks += 1
            node = node.parent

    def unlock(self, node: RadixNode) -> None:
        """Takes one `lock` of the path from the root to `node` back."""
        while node.parent is not None:
            assert node.locks > 0, "unlock without lock"
            node.locks -= 1
            if node.locks == 0:
                self.num_locked_pages -= len(node.pages)
                if node.is_evictable and not node.is_queued:
                    self._enqueue(node)
            node = node.parent

    def evict(self, count: int) -> tuple[list[PageHash], list[int]]:
        """Removes up to `count` pages: of the least recently used leaf first, and from the end of
        its run.

        Returns their hashes (children always before parents) and page indices.
        """
        hashes: list[PageHash] = []
        pages: list[int] = []
        while len(pages) < count and (leaf := self._pop_oldest()):
            wanted = count - len(pages)
            hashes += leaf.hashes[: -wanted - 1 : -1]
            pages += leaf.pages[: -wanted - 1 : -1]
            if wanted < len(leaf.pages):
                del leaf.hashes[-wanted:], leaf.pages[-wanted:], leaf.keys[-wanted:]
                self._enqueue(leaf)
                break
            self._detach(leaf)
        self.num_pages -= len(pages)
        return hashes, pages

    def remove(self, first_hashes: Iterable[PageHash]) -> tuple[list[PageHash], list[int]]:
        """Removes every unlocked page of the chains that begin with one of `first_hashes`.

        Returns their hashes (children always before parents) and page indices. Looks at the whole
        queue of eviction, so it is for operators and not for every step.
        """
        hashes: list[PageHash] = []
        pages: list[int] = []
        removed: set[RadixNode] = set()
        for first in first_hashes:
            child = self.root.children.get(first)
            if child is None:
                continue
            for node in reversed(list(_below(child))):
                if node.locks == 0:  # then so is everything below it, which is gone already
                    hashes += reversed(node.hashes)
                    pages += reversed(node.pages)
                    removed.add(node)
                    self._detach(node)
        self._queue = [entry for entry in self._queue if entry[2] not in removed]
        heapq.heapify(self._queue)
        self.num_pages -= len(pages)
        return hashes, pages

    def _detach(self, leaf: RadixNode) -> None:
        """Takes a leaf from its parent, which may become evictable by it."""
        parent = leaf.parent
        assert parent is not None and not leaf.children
        del parent.children[leaf.hashes[0]]
        beginnings.remove(parent.followers, leaf.keys[0], leaf.hashes[0])
        if parent.is_evictable and not parent.is_queued:
            self._enqueue(parent)

    def _enqueue(self, node: RadixNode) -> None:
        node.is_queued = True
        heapq.heappush(self._queue, (node.last_used, next(self._serial), node))

    def _pop_oldest(self) -> RadixNode | None:
        """Takes the least recently used evictable leaf from the queue and returns it; None if there
        is none."""
        while self._queue:
            queued_for, _, node = heapq.heappop(self._queue)
            node.is_queued = False
            if not node.is_evictable:
                continue
            if queued_for == node.last_used:
                return node
            self._enqueue(node)
        return None

    def _split(self, node: RadixNode, length: int) -> RadixNode:
        """Cuts the run of `node` after `length` pages. Returns the new node with the first part of
        the run."""
        parent = node.parent
        assert parent is not None and 0 < length < len(node.hashes)
        upper = RadixNode(
            parent,
            node.hashes[:length],
            node.pages[:length],
            node.keys[:length],
            node.locks,
            node.last_used,
        )
        parent.children[upper.hashes[0]] = upper
        node.hashes, node.pages = node.hashes[length:], node.pages[length:]
        node.keys = node.keys[length:]
        node.parent = upper
        upper.children[node.hashes[0]] = node
        beginnings.add(upper.followers, node.keys[0], node.hashes[0])
        return upper


def _below(top: RadixNode) -> Iterator[RadixNode]:
    """Yields `top` and every node below it, parents before children."""
    stack = [top]
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()


def _common_length(run: Sequence[PageHash], hashes: Sequence[PageHash], offset: int) -> int:
    """Returns how many hashes of `run` equal those of `hashes` from `offset` on. It bisects, as
    hashes are chained: those that are equal at one place are equal before it."""
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

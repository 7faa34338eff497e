"""`PrefixIndex`: which node owns which page, by page hash. Pure; a mirror of Redis in memory.

One dictionary from page hash to a bit mask of owners. Masks are shared between pages, so a page
costs its key and one dictionary slot (110 to 170 bytes), however many nodes own it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from protocol.hashing import PageHash
from protocol.ids import Node

MAX_SHARED_MASKS = 65_536
"""Masks that one node's transitions remember; more are owners' sets met once, not worth keeping."""


class _Masks(dict[int, int]):
    """Maps the mask of a page's owners before one node came (or went) to the mask after it. Each is
    computed once and then shared by all pages."""

    def __init__(self, bit: int, adds: bool) -> None:
        self._bit = bit
        self._adds = adds

    def __missing__(self, mask: int) -> int:
        if len(self) >= MAX_SHARED_MASKS:
            self.clear()
        after = self[mask] = mask | self._bit if self._adds else mask & ~self._bit
        return after


class _Owner:
    """What the index knows of one node: its bit in masks, and how many pages it owns."""

    __slots__ = ("bit", "num_pages", "with_it", "without_it")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.num_pages = 0
        self.with_it = _Masks(bit, adds=True)
        self.without_it = _Masks(bit, adds=False)


class PrefixIndex:
    """Maps page hashes to owners.

    Ownership is prefix-closed (nodes store parents before and remove them after children), so the
    owners of a chain only become fewer along it, and `match` bisects instead of walking.
    """

    def __init__(self) -> None:
        self._masks: dict[PageHash, int] = {}
        self._owners: dict[Node, _Owner] = {}
        self._nodes: dict[int, Node] = {}  # by bit
        self.version = 0
        """Grows with every change: while it stays, `match` says the same."""
        self.on_removed: Callable[[Node, Collection[PageHash]], None] | None = None
        """Told by `removed` of pages that a node owns no more, also of those not known here."""

    def stored(self, node: Node, hashes: Iterable[PageHash]) -> None:
        """Adds the node to the owners of these pages, parents before children. Does nothing for
        pages that it owns already."""
        self.version += 1
        owner = self._owners.get(node) or self._add(node)
        masks, bit, with_it = self._masks, owner.bit, owner.with_it
        get = masks.get
        for page_hash in hashes:
            mask = get(page_hash, 0)
            if not mask & bit:
                masks[page_hash] = with_it[mask]
                owner.num_pages += 1

    def removed(self, node: Node, hashes: Collection[PageHash]) -> None:
        """Takes the node from the owners of these pages. Does nothing for pages that it does not
        own."""
        self.version += 1
        if self.on_removed is not None:
            self.on_removed(node, hashes)
        owner = self._owners.get(node)
        if owner is None:
            return
        masks, bit, without_it = self._masks, owner.bit, owner.without_it
        get = masks.get
        for page_hash in hashes:
            mask = get(page_hash, 0)
            if mask & bit:
                owner.num_pages -= 1
                if mask == bit:
                    del masks[page_hash]
                else:
                    masks[page_hash] = without_it[mask]

    def forget(self, *nodes: Node) -> None:
        """Takes these nodes from the owners of all pages: their leases have ended. Looks at every
        page of the index, once for all nodes (55 ms for a million pages)."""
        self.version += 1
        known = [node for node in nodes if node in self._owners]
        gone = 0
        for node in known:
            owner = self._owners.pop(node)
            del self._nodes[owner.bit]
            # The bit is free for another node from here on, so no mask may keep it.
            gone |= owner.bit if owner.num_pages else 0
        if not gone:
            return
        masks, rests = self._masks, _Masks(gone, adds=False)
        for page_hash, mask in [item for item in masks.items() if item[1] & gone]:
            if rest := rests[mask]:
                masks[page_hash] = rest
            else:
                del masks[page_hash]

    def match(self, hashes: Sequence[PageHash]) -> dict[Node, int]:
        """Returns how many leading pages of the chain each node owns; nodes that own none are
        absent.

        It takes a few dictionary look-ups for each different depth, each of log2(len(hashes)).
        """
        depths: dict[Node, int] = {}
        get = self._masks.get
        owners = get(hashes[0], 0) if hashes else 0
        if not owners:
            return depths
        # Owners of the page at `low`, and those of them that also own the one at `high`.
        spans = [(0, owners, len(hashes), 0)]
        while spans:
            low, at_low, high, at_high = spans.pop()
            while high - low > 1:
                middle = (low + high) // 2
                at_middle = get(hashes[middle], 0) & at_low
                if at_middle == at_low:
                    low = middle
                elif at_middle == at_high:
                    high = middle
                else:
                    spans.append((middle, at_middle, high, at_high & at_middle))
                    high, at_high = middle, at_middle
            ending = at_low & ~at_high
            while ending:
                bit = ending & -ending
                depths[self._nodes[bit]] = high
                ending ^= bit
        return depths

    def owners(self, page_hash: PageHash) -> list[Node]:
        """Returns the nodes that own this page."""
        mask = self._masks.get(page_hash, 0)
        return [node for bit, node in self._nodes.items() if mask & bit]

    def has_owner(self, page_hash: PageHash) -> bool:
        """Returns True if a node owns this page, and so all pages before it."""
        return page_hash in self._masks

    def pages(self, node: Node) -> list[PageHash]:
        """Returns every page that the node owns, in no order. Looks at every page of the index."""
        owner = self._owners.get(node)
        if owner is None:
            return []
        bit = owner.bit
        return [page_hash for page_hash, mask in self._masks.items() if mask & bit]

    def num_pages(self, node: Node) -> int:
        """Returns how many pages the node owns."""
        owner = self._owners.get(node)
        return owner.num_pages if owner is not None else 0

    @property
    def num_unique_pages(self) -> int:
        """Returns how many different pages have an owner."""
        return len(self._masks)

    @property
    def num_owned_pages(self) -> int:
        """Returns the sum of the nodes' pages. What it has beyond `num_unique_pages` are
        replicas."""
        return sum(owner.num_pages for owner in self._owners.values())

    @property
    def num_bytes(self) -> int:
        """Returns nearly how much memory the index takes: its dictionary, and a key of 64 bytes for
        each page."""
        return self._masks.__sizeof__() + 64 * len(self._masks)

    def _add(self, node: Node) -> _Owner:
        bit = 1
        while bit in self._nodes:
            bit <<= 1
        owner = self._owners[node] = _Owner(bit)
        self._nodes[bit] = node
        return owner

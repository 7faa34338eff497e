"""`PrefixCache`: the pool and the tree together; all that a scheduler sees of pages. Pure.

A page is always in exactly one of three states:

    free     in the pool
    held     by at least one request: private to it, or cached and on its path in the tree
    cached   in the tree and held by nobody: the next request may hit it or evict it

    free + held + cached == total

The last page of a request, if it is not full, is cached as well: a *tail*. It has no hash that
others know and nobody hits it as a page, but its tokens can be copied, as those of any page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from engine.cache.beginnings import TOKEN_BYTES, key_of
from engine.cache.page_pool import PagePool
from engine.cache.radix import RadixNode, RadixTree
from protocol.hashing import PAGE_HASH_BYTES, PageHash
from protocol.namespace import SHARED, Namespace

SCOPE_TOKENS = 4
"""How many tokens' room the name of a namespace takes before the tokens of a first page."""


@dataclass(eq=False)
class HeldPages:
    """The pages that one request holds, in the order of its tokens. Only a `PrefixCache` makes and
    changes them."""

    pages: list[int]
    num_cached_pages: int
    """How many leading pages were cached when they were acquired: their KV needs no computing."""
    node: RadixNode = field(repr=False)
    private: set[int] = field(repr=False)
    """Those of the pages that are not in the tree. They become free when they are released."""
    namespace: Namespace = SHARED
    num_committed_pages: int = 0
    tokens: Sequence[int] = field(default=(), repr=False)
    """The request's own tokens, which may grow."""
    released: bool = False


@dataclass(frozen=True)
class CacheChange:
    """Pages that became findable, or ceased to be. Who applies it takes away `removed` first, in
    which children come before parents, and then adds `stored`."""

    removed: list[PageHash]
    stored: list[PageHash]


@dataclass(frozen=True)
class Beginning:
    """A cached page whose first tokens are those that a request has next."""

    page: int
    num_tokens: int


class PrefixCache:
    """Finds pages by their hashes, gives pages to requests, and evicts."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self._page_size = page_size
        self._pool = PagePool(num_pages)
        self._tree = RadixTree()
        self._num_private_pages = 0
        self._changes: list[CacheChange] = []
        self._salts: dict[PageHash, str] = {}
        """The tenant of every chain in the tree, by its first hash."""
        self._tails: set[PageHash] = set()
        """What stands for the hash of each tail in the tree."""
        self.num_evicted_pages = 0

    @property
    def num_pages(self) -> int:
        """The number of pages of the pool."""
        return self._pool.num_pages

    @property
    def num_free_pages(self) -> int:
        """The number of free pages."""
        return self._pool.num_free

    @property
    def num_cached_pages(self) -> int:
        """The number of pages that can be found and that nobody holds, so they could be evicted."""
        return self._tree.num_pages - self._tree.num_locked_pages

    @property
    def num_held_pages(self) -> int:
        """The number of pages that at least one request holds."""
        return self._num_private_pages + self._tree.num_locked_pages

    @property
    def num_tail_pages(self) -> int:
        """Tails among the cached and held pages."""
        return len(self._tails)

    def find(self, hashes: Sequence[PageHash]) -> list[int]:
        """Returns the pages of the longest cached prefix. Changes nothing, not even the order of
        eviction.

        Nobody holds these pages, so any `acquire` may evict them.
        """
        return self._tree.find(hashes)

    def hold(self, hashes: Sequence[PageHash]) -> HeldPages:
        """Holds the pages of the longest cached prefix and returns them. That does not count as a
        use: once released, they are evicted as early as without it."""
        pages, node = self._tree.match(hashes, now=None)
        self._tree.lock(node)
        return HeldPages(pages, len(pages), node, private=set(), num_committed_pages=len(pages))

    def hashes(self) -> list[PageHash]:
        """Returns the hashes of all pages that can be found, held or not."""
        return [h for h in self._tree.hashes() if h not in self._tails]

    def acquire(
        self,
        hashes: Sequence[PageHash],
        num_pages: int,
        now: float,
        namespace: Namespace = SHARED,
        num_spare_pages: int = 0,
        tokens: Sequence[int] = (),
    ) -> HeldPages | None:
        """Holds `num_pages` pages and returns them. The first of them are the longest cached prefix
        of `hashes`, which must be chained from `namespace`.

        Evicts as much as it needs. Returns None, and holds and evicts nothing, if there is no room
        until others release pages, or if fewer than `num_spare_pages` further pages could be given
        then. `tokens` are the request's, and may grow; without them nobody can copy the beginning
        of a page that it commits.
        """
        assert num_pages >= len(hashes)
        pages, node = self._tree.match(hashes, now)
        self._tree.lock(node)
        new_pages = self._allocate(num_pages - len(pages), num_spare_pages)
        if new_pages is None:
            self._tree.unlock(node)
            return None
        return HeldPages(
            pages + new_pages, len(pages), node, set(new_pages), namespace, len(pages), tokens
        )

    def extend(self, held: HeldPages, num_pages: int) -> bool:
        """Adds pages until `held` has `num_pages`, evicting as much as that needs. Returns False,
        and evicts nothing, if there is no room until others release pages."""
        assert not held.released and num_pages > len(held.pages)
        new_pages = self._allocate(num_pages - len(held.pages))
        if new_pages is None:
            return False
        held.pages += new_pages
        held.private.update(new_pages)
        return True

    def commit(self, held: HeldPages, hashes: Sequence[PageHash], now: float) -> None:
        """Makes the first len(hashes) of the held pages findable: they contain now what `hashes`
        say.

        If another request committed the same content first, its page stays in the tree, and ours
        remains private. Repeating what was committed before changes nothing.
        """
        assert not held.released and len(hashes) <= len(held.pages)
        if len(hashes) <= held.num_committed_pages:
            return
        present, node = self._tree.match(hashes, now)
        taken = held.pages[len(present) : len(hashes)]
        if taken:
            keys = [self._key(held, i) for i in range(len(present), len(hashes))]
            node = self._tree.append(node, hashes[len(present) :], taken, keys, now)
            self._salts[hashes[0]] = held.namespace.salt
            self._changes.append(CacheChange([], list(hashes[len(present) :])))
        self._give_to_tree(held, taken, node)
        held.num_committed_pages = len(hashes)

    def closest(self, held: HeldPages, num_reusable: int, now: float) -> Beginning | None:
        """Returns the cached page behind the committed ones of `held` that begins most like the
        tokens that come next, of which those behind the first `num_reusable` of the request do not
        count. None: no page begins alike.

        Nobody holds that page: it must be copied before anybody takes pages again.
        """
        number = held.num_committed_pages
        not_counted = 0 if number else SCOPE_TOKENS
        found = self._tree.closest(
            held.node, self._key(held, number, num_reusable), not_counted, now
        )
        return Beginning(found[0], found[1] - not_counted) if found else None

    def keep_tail(self, held: HeldPages, num_tokens: int, now: float) -> None:
        """Makes the last page findable for `closest` although it is not full: the pages have the KV
        of `num_tokens` tokens. Does nothing if there is no such page, or one before it is not
        committed. What follows must be `release`.
        """
        number = held.num_committed_pages
        if not 0 < num_tokens - number * self._page_size < self._page_size:
            return
        key = self._key(held, number, num_tokens)
        before = held.node.hashes[-1] if number else b""
        tail = blake2b(before + key, digest_size=PAGE_HASH_BYTES, person=b"tail").digest()
        node = held.node.children.get(tail)
        if node is not None:
            node.last_used = now
            return
        page = held.pages[number]
        self._tails.add(tail)
        if not number:
            self._salts[tail] = held.namespace.salt
        node = self._tree.append(held.node, [tail], [page], [key], now)
        self._give_to_tree(held, [page], node)

    def release(self, held: HeldPages) -> None:
        """Gives the pages back: private ones become free, committed ones stay cached."""
        assert not held.released, "pages released twice"
        held.released = True
        self._pool.free(held.private)
        self._num_private_pages -= len(held.private)
        self._tree.unlock(held.node)

    def flush(self, cache_salt: str | None = None) -> int:
        """Forgets every cached page that no request holds, and returns how many these were.

        With a `cache_salt` only the pages of that tenant are meant; "" is the tenant without a
        salt.
        """
        wanted = [h for h, salt in self._salts.items() if cache_salt in (None, salt)]
        return self._removed(*self._tree.remove(wanted))

    def take_changes(self) -> list[CacheChange]:
        """Returns what was stored and removed since the last call, in order. If the changes are
        applied in this order, the owned set is prefix-closed at every moment."""
        changes, self._changes = self._changes, []
        return changes

    def _key(self, held: HeldPages, number: int, num_tokens: int | None = None) -> bytes:
        """Returns the key of page `number`: its tokens, but for those behind the first `num_tokens`
        of the request. The first pages of all namespaces follow the root of the tree; what keeps
        them apart stands before their tokens."""
        first, end = number * self._page_size, (number + 1) * self._page_size
        key = key_of(held.tokens[first : end if num_tokens is None else min(end, num_tokens)])
        return key if number else _scope_of(held.namespace) + key

    def _give_to_tree(self, held: HeldPages, pages: list[int], node: RadixNode) -> None:
        """These private pages are the tree's now, whose path to `node` is held from now on."""
        assert held.private.issuperset(pages), "a shared page was committed again"
        held.private.difference_update(pages)
        self._num_private_pages -= len(pages)
        self._tree.lock(node)
        self._tree.unlock(held.node)
        held.node = node

    def _allocate(self, count: int, num_spare: int = 0) -> list[int] | None:
        missing = count - self._pool.num_free
        if missing + num_spare > self.num_cached_pages:
            return None
        if missing > 0:
            self.num_evicted_pages += self._removed(*self._tree.evict(missing))
        pages = self._pool.allocate(count)
        if pages is not None:
            self._num_private_pages += count
        return pages

    def _removed(self, hashes: list[PageHash], pages: list[int]) -> int:
        """Takes back pages that the tree has given up, and returns how many."""
        self._pool.free(pages)
        for page_hash in hashes:
            self._salts.pop(page_hash, None)
        if known := [page_hash for page_hash in hashes if page_hash not in self._tails]:
            self._changes.append(CacheChange(known, []))
        self._tails.difference_update(hashes)
        return len(pages)


def _scope_of(namespace: Namespace) -> bytes:
    """Returns as many bytes as `SCOPE_TOKENS` tokens have, others for every namespace."""
    fields = repr(msgspec.structs.astuple(namespace)).encode()
    return blake2b(fields, digest_size=SCOPE_TOKENS * TOKEN_BYTES).digest()

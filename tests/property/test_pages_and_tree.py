"""State machines over PagePool, RadixTree and PrefixCache, against models that cannot be wrong."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from engine.cache import Lease, PrefixCache
from engine.pages import PagePool
from engine.radix import RadixTree
from protocol.hashing import PageHash

NUM_PAGES = 12
QUICK = settings(
    max_examples=120, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)

paths = st.lists(st.sampled_from("ab"), max_size=6).map("".join)
"""A prompt as a string of pages; prefixes are shared often, as there are two letters."""


def hashes_of(path: str) -> list[PageHash]:
    """Stands in for chained hashes: the hash of a page is its whole path."""
    return [path[: i + 1].encode().rjust(16) for i in range(len(path))]


class PoolMachine(RuleBasedStateMachine):
    pool_type = PagePool
    given_out = Bundle("given_out")

    def __init__(self) -> None:
        super().__init__()
        self.pool = self.pool_type(NUM_PAGES)
        self.held: set[int] = set()

    @rule(target=given_out, count=st.integers(0, NUM_PAGES + 2))
    def allocate(self, count: int) -> object:
        pages = self.pool.allocate(count)
        if pages is None:
            assert count > NUM_PAGES - len(self.held)
            return multiple()
        assert len(pages) == count == len(set(pages))
        assert not self.held.intersection(pages)
        self.held.update(pages)
        return tuple(pages)

    @rule(pages=consumes(given_out))
    def free(self, pages: tuple[int, ...]) -> None:
        self.pool.free(pages)
        self.held.difference_update(pages)

    @invariant()
    def counts_add_up(self) -> None:
        assert self.pool.num_free + len(self.held) == NUM_PAGES


class TreeMachine(RuleBasedStateMachine):
    """Shadow: a dict from path to page."""

    tree_type = RadixTree
    locked = Bundle("locked")

    def __init__(self) -> None:
        super().__init__()
        self.tree = self.tree_type()
        self.shadow: dict[bytes, int] = {}
        self.locks: list[bytes] = []
        self.pages = itertools.count()
        self.clock = (tick // 4 for tick in itertools.count())  # ties happen

    @rule(path=paths)
    def match(self, path: str) -> None:
        hashes = hashes_of(path)
        length = self.tree.match_length(hashes)
        pages, _ = self.tree.match(hashes, next(self.clock))
        expected = list(itertools.takewhile(lambda h: h in self.shadow, hashes))
        assert pages == [self.shadow[h] for h in expected]
        assert length == len(expected)

    @rule(path=paths)
    def insert(self, path: str) -> None:
        hashes = hashes_of(path)
        pages = [next(self.pages) for _ in hashes]
        present, _ = self.tree.insert(hashes, pages, next(self.clock))
        assert present == len([h for h in hashes if h in self.shadow])
        self.shadow.update(zip(hashes[present:], pages[present:], strict=True))

    @rule(target=locked, path=paths)
    def lock(self, path: str) -> object:
        pages, node = self.tree.match(hashes_of(path), next(self.clock))
        self.tree.lock(node)
        key = hashes_of(path)[: len(pages)]
        self.locks.append(key[-1] if key else b"")
        return node, self.locks[-1]

    @rule(lock=consumes(locked))
    def unlock(self, lock: object) -> None:
        node, key = lock  # type: ignore[misc]
        self.tree.unlock(node)
        self.locks.remove(key)

    @rule(count=st.integers(0, 5))
    def evict(self, count: int) -> None:
        hashes, pages = self.tree.evict(count)
        evictable = len(self.shadow) - len(self._locked_hashes())
        assert len(hashes) == len(pages) == min(count, evictable)
        for page_hash, page in zip(hashes, pages, strict=True):
            assert page_hash not in self._locked_hashes()
            assert self.shadow.pop(page_hash) == page
            child = page_hash.strip()
            assert not any(other.strip().startswith(child) for other in self.shadow), (
                "a parent was evicted before its child"
            )

    @invariant()
    def counts_add_up(self) -> None:
        assert self.tree.num_pages == len(self.shadow)
        assert self.tree.num_locked_pages == len(self._locked_hashes())

    def _locked_hashes(self) -> set[bytes]:
        locked = [key.strip() for key in self.locks]
        return {h for h in self.shadow if any(key.startswith(h.strip()) for key in locked)}


class CacheMachine(RuleBasedStateMachine):
    """Shadow: what each page holds, written by leases as requests would."""

    cache_type = PrefixCache
    pool_type = PagePool
    tree_type = RadixTree
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.cache = self.cache_type(NUM_PAGES)
        self.cache._pool = self.pool_type(NUM_PAGES)
        self.cache._tree = self.tree_type()
        self.content: dict[int, bytes] = {}
        self.open: list[Lease] = []
        self.owned: set[bytes] = set()
        self.clock = (tick // 4 for tick in itertools.count())  # ties happen

    @rule(target=leases, path=paths, extra=st.integers(0, 3))
    def acquire(self, path: str, extra: int) -> object:
        hashes = hashes_of(path)
        known = self.cache.match_length(hashes)
        room = self.cache.num_free_pages + self.cache.num_cached_pages
        lease = self.cache.acquire(hashes, len(hashes) + extra, next(self.clock))
        if lease is None:
            assert len(hashes) + extra > room, "refused although there was room"
            return multiple()
        assert lease.num_cached_pages == known
        for page, page_hash in zip(lease.pages[:known], hashes, strict=False):
            assert self.content[page] == page_hash, "a hit is not a true prefix"
        for other in self.open:
            assert not set(lease.pages[known:]) & set(other.pages), "a held page was given out"
        for page, page_hash in zip(lease.pages[known:], hashes[known:], strict=False):
            self.content[page] = page_hash  # compute it
        self.open.append(lease)
        return lease, path

    @rule(item=leases, length=st.integers(0, 6))
    def commit(self, item: tuple[Lease, str], length: int) -> None:
        lease, path = item
        if not lease.released:
            length = max(length, lease.num_cached_pages)
            self.cache.commit(lease, hashes_of(path)[:length], next(self.clock))

    @rule(item=consumes(leases))
    def release(self, item: tuple[Lease, str]) -> None:
        lease, _ = item
        if not lease.released:
            self.cache.release(lease)
            self.open.remove(lease)

    @rule()
    def flush(self) -> None:
        self.cache.flush()
        assert self.cache.num_cached_pages == 0

    @invariant()
    def free_held_and_cached_add_up(self) -> None:
        cache = self.cache
        held = {page for lease in self.open for page in lease.pages}
        assert cache.num_free_pages + cache.num_held_pages + cache.num_cached_pages == NUM_PAGES
        assert cache.num_held_pages >= len(held)
        if not self.open:
            assert cache.num_held_pages == 0, "something is held at quiescence"

    @invariant()
    def announced_ownership_is_prefix_closed(self) -> None:
        for change in self.cache.take_changes():
            for page_hash in change.removed:
                self.owned.remove(page_hash)
            for page_hash in change.stored:
                assert page_hash not in self.owned
                self.owned.add(page_hash)
            for page_hash in self.owned:
                parent = page_hash.strip()[:-1]
                assert not parent or parent.rjust(16) in self.owned
        assert len(self.owned) == NUM_PAGES - self.cache.num_free_pages - self._private()

    def _private(self) -> int:
        return sum(len(lease.private) for lease in self.open)


@pytest.mark.parametrize("machine", [PoolMachine, TreeMachine, CacheMachine])
def test_properties_hold(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=QUICK)


class EvictsHeldPages(RadixTree):
    """Planted bug: forgets that leases lock their path."""

    def lock(self, node: object) -> None:
        pass

    def unlock(self, node: object) -> None:
        pass


class ForgetsToFree(PagePool):
    """Planted bug: loses a page whenever two or more come back."""

    def free(self, pages: object) -> None:
        super().free(list(pages)[1:] if len(list(pages)) > 1 else pages)  # type: ignore[call-overload, arg-type]


class MatchesTooMuch(RadixTree):
    """Planted bug: takes the children of a node for its siblings' prefixes."""

    def match(self, hashes, now):  # type: ignore[no-untyped-def]
        pages, node = super().match(hashes, now)
        if len(pages) < len(hashes) and node.children:
            node = next(iter(node.children.values()))
            pages = (pages + node.pages)[: len(hashes)]
        return pages, node


class RefusesEverything(PrefixCache):
    """Planted bug: says that there is no room."""

    def acquire(self, hashes, num_pages, now):  # type: ignore[no-untyped-def]
        return None


class FreesWhatOthersHit(PrefixCache):
    """Planted bug: takes committed pages for its own when it releases a lease."""

    def release(self, lease: Lease) -> None:
        lease.private.update(lease.pages)
        super().release(lease)


@pytest.mark.parametrize(
    ("machine", "part", "bug"),
    [
        (PoolMachine, "pool_type", ForgetsToFree),
        (TreeMachine, "tree_type", EvictsHeldPages),
        (TreeMachine, "tree_type", MatchesTooMuch),
        (CacheMachine, "pool_type", ForgetsToFree),
        (CacheMachine, "tree_type", EvictsHeldPages),
        (CacheMachine, "tree_type", MatchesTooMuch),
        (CacheMachine, "cache_type", RefusesEverything),
        (CacheMachine, "cache_type", FreesWhatOthersHit),
    ],
)
def test_planted_bugs_are_found(machine: type[RuleBasedStateMachine], part: str, bug: type) -> None:
    broken = type("Broken", (machine,), {part: bug})
    with pytest.raises((AssertionError, KeyError, IndexError)):
        run_state_machine_as_test(broken, settings=QUICK)

"""State machines over PagePool, RadixTree and PrefixCache, against models that cannot be wrong."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import Phase, settings
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

from engine.cache.beginnings import key_of
from engine.cache.page_pool import PagePool
from engine.cache.prefix_cache import Beginning, HeldPages, PrefixCache
from engine.cache.radix import RadixTree
from protocol.hashing import PageHash
from protocol.namespace import SHARED, Namespace

NUM_PAGES = 12
HOLDS = settings(stateful_step_count=40, report_multiple_bugs=False)
FIND_ONLY = settings(HOLDS, max_examples=2_000, phases=[Phase.generate])
"""A planted bug is to be found; nobody reads its shortest example."""

paths = st.lists(st.sampled_from("ab"), max_size=6).map("".join)
"""A prompt as a string of pages; prefixes are shared often, as there are two letters."""


salts = st.sampled_from(["", "shout"])


def hashes_of(path: str, salt: str = "") -> list[PageHash]:
    """Returns what stands in for chained hashes: the hash of a page is its whole path, in capitals
    for a tenant."""
    return [
        (path[: i + 1].upper() if salt else path[: i + 1]).encode().rjust(16)
        for i in range(len(path))
    ]


PAGE_SIZE = 8


def tokens_of(path: str) -> list[int]:
    """The tokens of the last page of a path; those of its two children differ behind the third."""
    return [7, 7, 300 + len(path), *[ord(path[-1])] * (PAGE_SIZE - 3)]


def num_common(one: list[int], other: list[int]) -> int:
    return sum(
        1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(one, other, strict=False))
    )


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
    """Drives a tree beside its shadow, a dict from path to page."""

    tree_type = RadixTree
    locked = Bundle("locked")

    def __init__(self) -> None:
        super().__init__()
        self.tree = self.tree_type()
        self.shadow: dict[bytes, int] = {}
        self.used: dict[bytes, int] = {}
        self.locks: list[bytes] = []
        self.pages = itertools.count()
        self.clock = (tick // 2 for tick in itertools.count())  # ties happen

    @rule(path=paths)
    def match(self, path: str) -> None:
        hashes = hashes_of(path)
        found = self.tree.find(hashes)
        expected = self._use(hashes)
        pages, _ = self.tree.match(hashes, self.now)
        assert pages == found == [self.shadow[h] for h in expected]

    @rule(path=paths)
    def find(self, path: str) -> None:
        """Checks that `find` does not count as a use: `used` stays as it is, and evictions must
        agree with it."""
        hashes = hashes_of(path)
        expected = itertools.takewhile(lambda h: h in self.shadow, hashes)
        assert self.tree.find(hashes) == [self.shadow[h] for h in expected]

    @rule(path=paths)
    def match_without_use(self, path: str) -> None:
        hashes = hashes_of(path)
        expected = itertools.takewhile(lambda h: h in self.shadow, hashes)
        pages, _ = self.tree.match(hashes, None)
        assert pages == [self.shadow[h] for h in expected]

    @rule(path=paths)
    def insert(self, path: str) -> None:
        hashes = hashes_of(path)
        pages = [next(self.pages) for _ in hashes]
        self._use(hashes)
        found, node = self.tree.match(hashes, self.now)
        present = len(found)
        assert present == len([h for h in hashes if h in self.shadow])
        if present < len(hashes):
            keys = [key_of(tokens_of(path[: i + 1])) for i in range(present, len(path))]
            self.tree.append(node, hashes[present:], pages[present:], keys, self.now)
        self.shadow.update(zip(hashes[present:], pages[present:], strict=True))
        self.used.update(dict.fromkeys(hashes[present:], self.now))

    @rule(path=paths, letter=st.sampled_from("ab"), length=st.integers(0, 8))
    def closest(self, path: str, letter: str, length: int) -> None:
        """Counts as a use of the page that is found, and of no other."""
        self._use(hashes_of(path))
        pages, node = self.tree.match(hashes_of(path), self.now)
        path = path[: len(pages)]
        wanted = tokens_of(path + letter)[:length]
        followers = [path + other for other in "ab" if hashes_of(path + other)[-1] in self.shadow]
        common = {other: num_common(tokens_of(other), wanted) for other in followers}
        found = self.tree.closest(node, key_of(wanted), 0, self.now)
        if not max(common.values(), default=0):
            assert found is None
            return
        assert found is not None and found[1] == max(common.values())
        (page_hash,) = [h for h, page in self.shadow.items() if page == found[0]]
        assert page_hash in [hashes_of(f)[-1] for f in followers if common[f] == found[1]]
        self.used[page_hash] = self.now

    @rule(target=locked, path=paths)
    def lock(self, path: str) -> object:
        self._use(hashes_of(path))
        pages, node = self.tree.match(hashes_of(path), self.now)
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
            oldest = min(self.used[leaf] for leaf in self._evictable_leaves())
            assert page_hash in self._evictable_leaves(), "it was locked, or went before a child"
            assert self.used[page_hash] == oldest, "another leaf was used before it"
            assert self.shadow.pop(page_hash) == page

    @rule(first=st.sets(st.sampled_from("ab")))
    def remove(self, first: set[str]) -> None:
        locked = self._locked_hashes()
        chosen = {h for h in self.shadow if h.strip().decode()[0] in first}
        hashes, pages = self.tree.remove(hashes_of(letter)[0] for letter in sorted(first))
        assert set(hashes) == chosen - locked
        for page_hash, page in zip(hashes, pages, strict=True):
            assert page_hash in self._evictable_leaves(), "a parent went before its child"
            assert self.shadow.pop(page_hash) == page

    @invariant()
    def counts_add_up(self) -> None:
        assert self.tree.num_pages == len(self.shadow)
        assert self.tree.num_locked_pages == len(self._locked_hashes())
        assert sorted(self.tree.hashes()) == sorted(self.shadow)

    @invariant()
    def the_queue_of_eviction_is_bounded(self) -> None:
        assert len(self.tree._queue) <= self.tree.num_pages + 1

    def _use(self, hashes: list[bytes]) -> list[bytes]:
        """Returns those of `hashes` that are cached, which are used at a new `now`."""
        self.now = next(self.clock)
        cached = list(itertools.takewhile(lambda h: h in self.shadow, hashes))
        self.used.update(dict.fromkeys(cached, self.now))
        return cached

    def _evictable_leaves(self) -> set[bytes]:
        parents = {h.strip()[:-1].rjust(16) for h in self.shadow}
        return set(self.shadow) - parents - self._locked_hashes()

    def _locked_hashes(self) -> set[bytes]:
        locked = [key.strip() for key in self.locks]
        return {h for h in self.shadow if any(key.startswith(h.strip()) for key in locked)}


class CacheMachine(RuleBasedStateMachine):
    """Drives a cache beside its shadow: what each page holds, as requests have written it: a hash,
    or the first tokens of what that hash stands for."""

    cache_type = PrefixCache
    pool_type = PagePool
    tree_type = RadixTree
    all_held = Bundle("all_held")

    def __init__(self) -> None:
        super().__init__()
        self.cache = self.cache_type(NUM_PAGES, PAGE_SIZE)
        self.cache._pool = self.pool_type(NUM_PAGES)
        self.cache._tree = self.tree_type()
        self.content: dict[int, bytes] = {}
        self.tokens: dict[int, list[int]] = {}
        """Those of which a page has the KV."""
        self.tenant: dict[int, str] = {}
        self.open: dict[HeldPages, list[bytes]] = {}
        """With the hashes of what each computes."""
        self.owned: set[bytes] = set()
        self.clock = (tick // 4 for tick in itertools.count())  # ties happen

    @rule(
        target=all_held,
        path=paths,
        salt=salts,
        extra=st.integers(0, 3),
        spare=st.sampled_from([0, 0, 1, 4]),
    )
    def acquire(self, path: str, salt: str, extra: int, spare: int) -> object:
        hashes = hashes_of(path, salt)
        known = len(self.cache.find(hashes))
        room = self.cache.num_free_pages + self.cache.num_cached_pages
        tokens = [token for i in range(len(path)) for token in tokens_of(path[: i + 1])]
        held = self.cache.acquire(
            hashes,
            len(hashes) + extra,
            next(self.clock),
            Namespace(salt),
            spare,
            tokens + [7] * PAGE_SIZE * extra,
        )
        if held is None:
            assert len(hashes) + extra + spare > room, "refused although there was room"
            return multiple()
        assert self.cache.num_free_pages + self.cache.num_cached_pages >= spare
        assert held.num_cached_pages == known
        for page, page_hash in zip(held.pages[:known], hashes, strict=False):
            assert self.content[page] == page_hash, "a hit is not a true prefix"
        for other in self.open:
            assert not set(held.pages[known:]) & set(other.pages), "a held page was given out"
        for page, page_hash in zip(held.pages[known:], hashes[known:], strict=False):
            self.content[page] = page_hash  # compute it
        for i, page in list(enumerate(held.pages))[known:]:
            self.tokens[page] = list(held.tokens[i * PAGE_SIZE : (i + 1) * PAGE_SIZE])
            self.tenant[page] = salt
        self.open[held] = hashes
        return held

    @rule(target=all_held, path=paths, salt=salts)
    def hold(self, path: str, salt: str) -> object:
        hashes = hashes_of(path, salt)
        pages = self.cache.find(hashes)
        held = self.cache.hold(hashes)
        assert held.pages == pages
        assert [self.content[page] for page in pages] == hashes[: len(pages)]
        self.open[held] = hashes[: len(pages)]
        return held

    @rule(held=all_held, extra=st.integers(1, 3))
    def extend(self, held: HeldPages, extra: int) -> None:
        if held.released:
            return
        before = list(held.pages)
        room = self.cache.num_free_pages + self.cache.num_cached_pages
        extended = self.cache.extend(held, len(before) + extra)
        assert extended == (extra <= room)
        assert held.pages[: len(before)] == before
        added = set(held.pages[len(before) :])
        assert len(added) == (extra if extended else 0)
        for other in self.open.keys() - {held}:
            assert not added & set(other.pages), "a held page was given out"

    @rule(held=all_held, length=st.integers(0, 6))
    def commit(self, held: HeldPages, length: int) -> None:
        if not held.released:
            length = max(length, held.num_cached_pages)
            self.cache.commit(held, self.open[held][:length], next(self.clock))

    @rule(held=all_held, num_tokens=st.integers(0, 7 * PAGE_SIZE))
    def closest(self, held: HeldPages, num_tokens: int) -> None:
        if held.released or not held.tokens:
            return
        first = held.num_committed_pages * PAGE_SIZE
        num_tokens = min(max(first, num_tokens), len(held.tokens))
        wanted = list(held.tokens[first:num_tokens][:PAGE_SIZE])
        found = self.cache.closest(held, num_tokens, next(self.clock))
        if found is None:
            return
        assert 0 < found.num_tokens <= len(wanted)
        assert self.tokens[found.page][: found.num_tokens] == wanted[: found.num_tokens]
        assert self.tenant[found.page] == held.namespace.salt

    @rule(held=consumes(all_held), num_tail_tokens=st.integers(0, PAGE_SIZE + 1))
    def release(self, held: HeldPages, num_tail_tokens: int) -> None:
        if not held.released:
            num_tokens = held.num_committed_pages * PAGE_SIZE + num_tail_tokens
            if num_tokens <= len(held.tokens):
                self.cache.keep_tail(held, num_tokens, next(self.clock))
            self.cache.release(held)
            del self.open[held]

    @rule()
    def flush(self) -> None:
        num_cached = self.cache.num_cached_pages
        assert self.cache.flush() == num_cached
        assert self.cache.num_cached_pages == 0

    @rule(salt=salts)
    def flush_one_tenant(self, salt: str) -> None:
        before = set(self.cache.hashes())
        self.cache.flush(salt)
        of_tenant = {h for h in before if h.isupper() == bool(salt)}
        kept = {h for held, chain in self.open.items() for h in chain[: held.num_committed_pages]}
        assert set(self.cache.hashes()) == before - (of_tenant - kept)

    @invariant()
    def free_held_and_cached_add_up(self) -> None:
        cache = self.cache
        pages = {page for held in self.open for page in held.pages}
        assert cache.num_free_pages + cache.num_held_pages + cache.num_cached_pages == NUM_PAGES
        assert cache.num_held_pages >= len(pages)
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
        assert self.owned == set(self.cache.hashes())
        num_in_tree = NUM_PAGES - self.cache.num_free_pages - self._private()
        assert len(self.owned) + len(self.cache._tails) == num_in_tree

    def _private(self) -> int:
        return sum(len(held.private) for held in self.open)


@pytest.mark.hypothesis
@pytest.mark.parametrize("machine", [PoolMachine, TreeMachine, CacheMachine])
def test_properties_hold(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=HOLDS)


class EvictsHeldPages(RadixTree):
    """Planted bug: forgets that held pages lock their path."""

    def lock(self, node: object) -> None:
        pass

    def unlock(self, node: object) -> None:
        pass


class BelievesTheQueue(RadixTree):
    """Planted bug: takes what the queue of eviction says of the last use for the truth."""

    def match(self, hashes, now):  # type: ignore[no-untyped-def]
        queued_for = {node: time for time, _, node in self._queue}
        pages, end = super().match(hashes, now)
        for node, time in queued_for.items():
            node.last_used = time
        return pages, end


class CountsLookingAsUse(RadixTree):
    """Planted bug: what was only looked at for another node is kept longer."""

    def find(self, hashes):  # type: ignore[no-untyped-def]
        pages, _ = self.match(hashes, 1e9)
        return pages


class CountsHoldingAsUse(RadixTree):
    """Planted bug: what was only held for another node is kept longer."""

    def match(self, hashes, now):  # type: ignore[no-untyped-def]
        return super().match(hashes, 1e9 if now is None else now)


class HoldsNothing(PrefixCache):
    """Planted bug: what is held may be evicted."""

    def hold(self, hashes):  # type: ignore[no-untyped-def]
        held = super().hold(hashes)
        self._tree.unlock(held.node)
        held.node = self._tree.root
        return held


class FlushesEverybody(PrefixCache):
    """Planted bug: a tenant's flush takes the pages of all."""

    def flush(self, cache_salt=None):  # type: ignore[no-untyped-def]
        return super().flush()


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


class TakesOneTokenMore(PrefixCache):
    """Planted bug: says of a page that it begins alike for longer than it does."""

    def closest(self, *request):  # type: ignore[no-untyped-def]
        found = super().closest(*request)
        return found and Beginning(found.page, found.num_tokens + 1)


class CopiesFromTenants(PrefixCache):
    """Planted bug: first pages of all tenants look alike."""

    def _key(self, held, number, num_tokens=None):  # type: ignore[no-untyped-def]
        return super()._key(replace(held, namespace=SHARED), number, num_tokens)


class ForgetsTails(PrefixCache):
    """Planted bug: tells the world of pages that are not full."""

    def keep_tail(self, *request):  # type: ignore[no-untyped-def]
        super().keep_tail(*request)
        self._tails.clear()


class RemembersTheFirst(RadixTree):
    """Planted bug: finds any page that follows, not the one that begins most alike."""

    def closest(self, node, key, more_than, now):  # type: ignore[no-untyped-def]
        node.followers[1:], rest = [], node.followers[1:]
        found = super().closest(node, key, more_than, now)
        node.followers[1:] = rest
        return found


class RefusesEverything(PrefixCache):
    """Planted bug: says that there is no room."""

    def acquire(self, *request, **options):  # type: ignore[no-untyped-def]
        return None


class LosesWhatItAdds(PrefixCache):
    """Planted bug: does not free on release by what a lease was extended."""

    def extend(self, held: HeldPages, num_pages: int) -> bool:
        private = set(held.private)
        extended = super().extend(held, num_pages)
        held.private = private
        return extended


class FreesWhatOthersHit(PrefixCache):
    """Planted bug: takes committed pages for its own when it releases a lease."""

    def release(self, held: HeldPages) -> None:
        held.private.update(held.pages)
        super().release(held)


rarely_seen = partial(pytest.param, marks=pytest.mark.verify)
"""Bugs that take thousands of steps to find."""


@pytest.mark.parametrize(
    ("machine", "part", "bug"),
    [
        (PoolMachine, "pool_type", ForgetsToFree),
        (TreeMachine, "tree_type", EvictsHeldPages),
        (TreeMachine, "tree_type", MatchesTooMuch),
        rarely_seen(TreeMachine, "tree_type", BelievesTheQueue),
        rarely_seen(TreeMachine, "tree_type", CountsLookingAsUse),
        rarely_seen(TreeMachine, "tree_type", CountsHoldingAsUse),
        (TreeMachine, "tree_type", RemembersTheFirst),
        (CacheMachine, "pool_type", ForgetsToFree),
        (CacheMachine, "tree_type", EvictsHeldPages),
        (CacheMachine, "tree_type", MatchesTooMuch),
        (CacheMachine, "cache_type", RefusesEverything),
        (CacheMachine, "cache_type", TakesOneTokenMore),
        (CacheMachine, "cache_type", CopiesFromTenants),
        (CacheMachine, "cache_type", ForgetsTails),
        (CacheMachine, "cache_type", LosesWhatItAdds),
        (CacheMachine, "cache_type", FreesWhatOthersHit),
        rarely_seen(CacheMachine, "cache_type", HoldsNothing),
        (CacheMachine, "cache_type", FlushesEverybody),
    ],
)
def test_planted_bugs_are_found(machine: type[RuleBasedStateMachine], part: str, bug: type) -> None:
    broken = type("Broken", (machine,), {part: bug})
    with pytest.raises((AssertionError, KeyError, IndexError)):
        run_state_machine_as_test(broken, settings=FIND_ONLY)

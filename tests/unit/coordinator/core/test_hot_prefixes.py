"""The prefixes that are hit most, in bounded memory."""

from __future__ import annotations

from coordinator.core.hot_prefixes import FIRST_TOKENS, HotPrefixes


def test_a_prefix_is_described() -> None:
    prefixes = HotPrefixes()
    prefixes.hit(b"a", list(range(50)), is_salted=True, now=3.0)
    prefixes.hit(b"a", list(range(50)), is_salted=True, now=4.0)
    (prefix,) = prefixes.hottest(10)
    assert (prefix.page_hash, prefix.num_tokens, prefix.is_salted) == (b"a", 50, True)
    assert prefix.first_tokens == list(range(FIRST_TOKENS))
    assert (prefix.hits, prefix.error, prefix.last_hit) == (2, 0, 4.0)


def test_most_hits_first_and_among_equals_the_last() -> None:
    prefixes = HotPrefixes()
    for now, name in enumerate("abbcd"):
        prefixes.hit(name.encode(), [1], False, float(now))
    assert [p.page_hash for p in prefixes.hottest(3)] == [b"b", b"d", b"c"]


def test_the_coldest_makes_place() -> None:
    prefixes = HotPrefixes(max_prefixes=2)
    for now, name in enumerate("aaabbc"):
        prefixes.hit(name.encode(), [1], False, float(now))
    assert [(p.page_hash, p.hits, p.error) for p in prefixes.hottest(9)] == [
        (b"c", 3, 2),
        (b"a", 3, 0),
    ]

"""Counts of the hottest prefixes, beside an exact count."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.hot_prefixes import HotPrefixes


@given(hits=st.lists(st.integers(0, 12), max_size=200), room=st.integers(1, 6))
def test_counts_are_never_too_low_and_too_high_by_at_most_the_error(
    hits: list[int], room: int
) -> None:
    prefixes = HotPrefixes(max_prefixes=room)
    for now, prefix in enumerate(hits):
        prefixes.hit(bytes([prefix]), [prefix], False, float(now))
    true = Counter(hits)
    kept = prefixes.hottest(100)
    assert len(kept) == min(room, len(true))
    for one in kept:
        assert one.hits - one.error <= true[one.page_hash[0]] <= one.hits
        assert one.last_hit == max(i for i, hit in enumerate(hits) if hit == one.page_hash[0])
    assert sum(one.hits for one in kept) == len(hits), "every hit is counted once"
    for prefix, count in true.items():
        if count > len(hits) / room:
            assert bytes([prefix]) in {one.page_hash for one in kept}
    assert len(prefixes._coldest) == len(kept)

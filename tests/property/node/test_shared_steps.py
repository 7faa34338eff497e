"""Prompts share the steps of a node: the shortest go first, and none is kept waiting for ever."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from protocol.admission import MIN_CHUNK_TOKENS, OLDEST_SHARE, chunk_sizes

lengths = st.integers(1, 500)
budgets = st.integers(1, 300)


@given(st.lists(lengths, max_size=12), budgets)
def test_a_step_is_full_or_has_all_there_is(rests: list[int], max_tokens: int) -> None:
    sizes = chunk_sizes(rests, max_tokens)
    assert sum(sizes) == min(max_tokens, sum(rests))
    assert all(0 <= size <= rest for size, rest in zip(sizes, rests, strict=True))


@given(st.lists(lengths, min_size=1, max_size=12), budgets)
def test_only_the_oldest_goes_on_before_a_shorter_one_is_done(
    rests: list[int], max_tokens: int
) -> None:
    sizes = chunk_sizes(rests, max_tokens)
    for i in range(1, len(rests)):
        if sizes[i]:
            shorter = [j for j in range(len(rests)) if (rests[j], j) < (rests[i], i)]
            assert all(sizes[j] == rests[j] for j in shorter)


@given(st.lists(lengths, min_size=1, max_size=8), st.data(), budgets)
def test_nobody_waits_for_more_steps_than_the_older_ones_need(
    before: list[int], data: st.DataObject, max_tokens: int
) -> None:
    """Whatever comes later, as many shorter ones as there may be. The first one alone waits for
    nobody."""
    least = min(max_tokens, max(int(OLDEST_SHARE * max_tokens), MIN_CHUNK_TOKENS))
    most_steps = sum(math.ceil(length / least) for length in before)
    later = [data.draw(lengths)] * max_tokens
    left, num_steps = list(before), 0
    while left:
        sizes = chunk_sizes([*left, *later], max_tokens)
        left = [rest - size for rest, size in zip(left, sizes, strict=False) if rest > size]
        num_steps += 1
        assert num_steps <= most_steps

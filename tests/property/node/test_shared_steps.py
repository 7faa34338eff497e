"""Prompts share the steps of a node: the shortest go first, and none is kept waiting for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.admission import MIN_CHUNK_TOKENS, OLDEST_SHARE, SHORT_STEP_TOKENS, chunk_sizes

lengths = st.integers(1, 3_000)
budgets = st.integers(1, 2_500)


@given(st.lists(lengths, max_size=12), budgets)
def test_a_step_is_full_unless_a_prompt_ends_in_it(rests: list[int], max_tokens: int) -> None:
    sizes = chunk_sizes(rests, max_tokens)
    most = min(max_tokens, sum(rests))
    assert sum(sizes) <= most
    if not any(size == rest for size, rest in zip(sizes, rests, strict=True)):
        assert sum(sizes) == most
    assert sum(sizes) >= min(most, SHORT_STEP_TOKENS)
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


@given(st.lists(lengths, min_size=1, max_size=6), st.lists(lengths, max_size=6), budgets)
def test_nobody_waits_longer_than_the_share_allows(
    before: list[int], later: list[int], max_tokens: int
) -> None:
    """Of prompts that come for ever. The first one alone waits for nobody older."""
    left, num_tokens, num_steps = list(before), 0, 0
    while left:
        sizes = chunk_sizes([*left, *later], max_tokens)
        num_tokens += sum(sizes)
        assert sizes[0] >= min(left[0], max_tokens, MIN_CHUNK_TOKENS)
        left = [rest - size for rest, size in zip(left, sizes, strict=False) if rest > size]
        num_steps += 1
        # In the order of arrival it would be `sum(before)`. Where a prompt ends, those after it
        # may fill its step.
        assert num_tokens <= sum(before) / OLDEST_SHARE + len(before) * max_tokens
        assert num_tokens <= num_steps * max_tokens


@given(lengths, st.lists(lengths, min_size=1, max_size=6), budgets)
def test_the_oldest_has_its_share(rest: int, later: list[int], max_tokens: int) -> None:
    sizes = chunk_sizes([rest, *later], max_tokens)
    assert sizes[0] == rest or sizes[0] >= int(OLDEST_SHARE * sum(sizes))

"""What a session keeps per turn gives the prompts that whole token lists would give."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.sessions.turns import (
    TurnRecord,
    TurnRequest,
    kept_tokens,
    tokens_of,
    without_bos,
)

TOKENS = st.lists(st.integers(0, 9), max_size=6)
STEPS = st.lists(
    st.tuples(st.integers(0, 99), TOKENS, TOKENS, st.integers(-8, 20), st.booleans()), max_size=12
)


@given(steps=STEPS)
def test_any_tree_of_turns_is_what_whole_lists_would_be(
    steps: list[tuple[int, list[int], list[int], int, bool]],
) -> None:
    chains: list[list[TurnRecord]] = [[]]
    naive: list[tuple[list[int], list[int]]] = [([], [])]
    for which, new, answer, offset, drops in steps:
        chain = chains[which % len(chains)]
        prompt, former = naive[which % len(naive)]
        asked = TurnRequest("s", rid="r", offset=offset, drop_previous_output=drops)

        expected = list(prompt) if drops else prompt + former
        if offset:
            expected = expected[:offset]
        kept = kept_tokens(chain, asked)
        assert kept == expected

        chains.append([*chain, TurnRecord(len(kept), new, answer)])
        naive.append((expected + new, answer))
        assert tokens_of(chains[-1]) == naive[-1]


@given(tokens=TOKENS, bos=st.none() | st.integers(0, 9))
def test_only_one_token_that_begins_a_text_is_left_out(tokens: list[int], bos: int | None) -> None:
    rest = without_bos(tokens, bos)
    begins = bos is not None and tokens[:1] == [bos]
    assert ([bos] if begins else []) + rest == tokens

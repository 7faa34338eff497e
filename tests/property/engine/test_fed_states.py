"""A state knows what a plain count over the whole history does, however it is fed."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.batches.sequence import UNKNOWN, Slice
from tests.support.engine.sequence_states import (
    LOOKS_AT_ALL,
    LOOKS_AT_ANSWER,
    PROMPT_LENGTH,
    VOCAB_SIZE,
    assert_seen,
    states,
)

TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=PROMPT_LENGTH, max_size=20)


@given(
    histories=st.lists(TOKENS, min_size=1, max_size=6),
    data=st.data(),
)
def test_a_state_counts_what_its_sequence_has(
    histories: list[list[int]], data: st.DataObject
) -> None:
    """Sequences of different lengths, a few new tokens at a time, some of which only the device
    knows; now and then a step comes twice."""
    fed = states()
    known = [0] * len(histories)
    samplings = [LOOKS_AT_ALL if i % 2 else LOOKS_AT_ANSWER for i in range(len(histories))]
    while any(known[i] < len(tokens) for i, tokens in enumerate(histories)):
        slices, sources, previous, rows = [], [], [0], []
        for i, tokens in enumerate(histories):
            left = len(tokens) - known[i]
            if left == 0 or data.draw(st.booleans()):
                continue
            num_new = data.draw(st.integers(1, left)) if known[i] else left
            num_new = data.draw(st.integers(PROMPT_LENGTH, left)) if known[i] == 0 else num_new
            start = known[i]
            is_unread = start > 0 and num_new == 1 and data.draw(st.booleans())
            replayed = data.draw(st.integers(0, num_new - 1))
            new = tokens[start : start + num_new]
            slices.append(
                Slice(
                    [UNKNOWN] if is_unread else new[replayed:],
                    start if is_unread else start + replayed,
                    [],
                    samplings[i],
                    follows=0 if is_unread else None,
                    sequence_id=i,
                    replay=() if is_unread else new[:replayed],
                )
            )
            sources.append(len(previous) if is_unread else UNKNOWN)
            previous += new if is_unread else []
            known[i] += num_new
            rows.append(i)
        for _ in range(data.draw(st.integers(1, 2))):
            seen = fed.feed(slices, sources, torch.tensor(previous))
            for row, i in enumerate(rows):
                assert_seen(seen, row, histories[i][: known[i]], samplings[i] is LOOKS_AT_ALL)
    assert len(fed) == len(histories)
    for i in range(len(histories)):
        fed.end(i)
    assert len(fed) == 0
